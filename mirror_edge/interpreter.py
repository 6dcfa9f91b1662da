"""Another process of this Python, with the same packages: for what must not take this one along."""

from __future__ import annotations

import os
import sys

from mirror_edge.errors import DeviceError

__all__ = ["command", "environment"]


def command(module: str, *arguments: str) -> list[str]:
    """What runs `module` as a program.

    Raises:
        DeviceError: if this program is no Python interpreter, as one that was packed into a file.
    """
    if getattr(sys, "frozen", False) or not sys.executable:
        raise DeviceError(
            "a frozen program cannot start the draft's process; pass draft_process=False, "
            "or run under a Python interpreter."
        )
    return [_executable(), "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's own, and where it finds packages."""
    search = os.pathsep.join(path for path in sys.path if path)
    found = {**os.environ, "PYTHONPATH": search}
    if _executable() != sys.executable:
        found["__PYVENV_LAUNCHER__"] = sys.executable
    return found


def _executable() -> str:
    """On Windows a virtual environment's interpreter starts the real one as its own child, which
    would not have what is handed to the first; told what launched it, the real one is as good.
    """
    base: str = getattr(sys, "_base_executable", sys.executable)
    return base if sys.platform == "win32" else sys.executable
