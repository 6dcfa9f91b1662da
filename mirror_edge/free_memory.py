"""How much main memory a process may still take."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["available_memory"]

_UNLIMITED = 1 << 60
"""Bytes from which a limit is none."""


class _Version(NamedTuple):
    """Where a version of Linux's control groups says what it allows."""

    mount: str
    limit: str
    used: str
    prefix: str
    """Of the entries in ``memory.stat`` that count all groups inside."""


_VERSIONS = {
    "": _Version("", "memory.max", "memory.current", ""),
    "memory": _Version("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
"""By the controller in ``/proc/self/cgroup``."""


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory: what is available on Linux and Windows, what is installed elsewhere.

    In a container it is no more than the container's limit leaves. None if unknown. `root` is where
    Linux's own folders are.
    """
    if sys.platform == "win32":
        return _windows()
    found = [*_linux(root), *_control_groups(root)]
    if found:
        return max(0, min(found))
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _linux(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError, KeyError):
        words = (root / "proc/meminfo").read_text(encoding="ascii").split()
        yield int(words[words.index("MemAvailable:") + 1]) * 1024


def _control_groups(root: Path) -> Iterator[int]:
    """What the limits of this process's control group, and of those around it, leave."""
    groups = list[str]()
    with suppress(OSError, ValueError):
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    for line in groups:
        _, controllers, path = line.split(":", 2)
        for version in filter(None, map(_VERSIONS.get, controllers.split(","))):
            mount = root / "sys/fs/cgroup" / version.mount
            inner = mount / path.lstrip("/")
            # A container may see its own group as the mount itself.
            for folder in (inner, *(up for up in inner.parents if up.is_relative_to(mount))):
                yield from _left(folder, version)


def _left(folder: Path, version: _Version) -> Iterator[int]:
    with suppress(OSError, ValueError):  # The outermost group has no files, or says "max".
        limit = int((folder / version.limit).read_text(encoding="ascii"))
        used = int((folder / version.used).read_text(encoding="ascii"))
        words = (folder / "memory.stat").read_text(encoding="ascii").split()
        cached = [words.index(f"{version.prefix}{kind}_file") for kind in ("inactive", "active")]
        if limit < _UNLIMITED:  # Cached files make room when it is needed.
            yield limit - used + sum(int(words[at + 1]) for at in cached)


if sys.platform == "win32":

    class _Status(ctypes.Structure):
        """``MEMORYSTATUSEX``."""

        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "available", "a", "b", "c", "d", "e")),
        )

    def _windows() -> int | None:
        status = _Status(length=ctypes.sizeof(_Status))
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            return None
        return int(status.available)
