"""Other processes of this Python, with the same packages, for work that may crash its process."""

from __future__ import annotations

import os
import sys

from mirror_edge.errors import DeviceError

__all__ = ["command", "environment"]


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` as a program.

    Raises:
        DeviceError: if this program is not a Python interpreter, such as one packed into a file.
    """
    if getattr(sys, "frozen", False) or not sys.executable:
        raise DeviceError(
            "a frozen program cannot start another Python process; pass draft_process=False, "
            "or run under a Python interpreter."
        )
    return [_executable(), "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment, with its search path for packages."""
    search = os.pathsep.join(path for path in sys.path if path)
    found = {**os.environ, "PYTHONPATH": search}
    if _executable() != sys.executable:
        found["__PYVENV_LAUNCHER__"] = sys.executable
    return found


def _executable() -> str:
    """The interpreter to start.

    On Windows the interpreter of a virtual environment starts the real one as a child of its own,
    which cannot use a socket shared with the first. So the real one is started directly; an
    environment variable tells it where its virtual environment is.
    """
    base: str = getattr(sys, "_base_executable", sys.executable)
    return base if sys.platform == "win32" else sys.executable
