"""What is kept between runs in the user's cache folder: compiled graphs, measurements, experience.

An entry is a folder of files with a list of them, ``entry.json``, which is written last. It is made
in a temporary folder and renamed into place, so it is complete or absent. It is checked on every
use, and a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mirror_edge.bundle import digest

__all__ = ["KINDS", "Key", "clear", "entry", "find", "folder", "recall", "renew", "write"]

KINDS = ("compiled", "costs", "experience", "probes", "shaders", "verified")
"""The subfolders of the cache folder."""

T = TypeVar("T")

_log = logging.getLogger("mirror_edge")

_LIST, _VALUE = "entry.json", "value.json"

Key = Mapping[str, str]
"""Everything that an entry depends on."""


def folder() -> Path:
    """The cache folder: ``MIRROR_EDGE_CACHE``, or the system's usual place.

    Raises:
        OSError: if there is none.
    """
    if named := os.environ.get("MIRROR_EDGE_CACHE"):
        try:
            return Path(named).expanduser()
        except RuntimeError as error:
            raise FileNotFoundError(f"MIRROR_EDGE_CACHE is {named}: {error}") from None
    variable, usual = {
        "win32": ("LOCALAPPDATA", "AppData/Local"),
        "darwin": ("", "Library/Caches"),
    }.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    if base := os.environ.get(variable):
        return Path(base) / "mirror-edge"
    try:
        return Path.home() / usual / "mirror-edge"
    except RuntimeError:
        raise FileNotFoundError(
            "there is no home folder for the cache; set MIRROR_EDGE_CACHE to a folder."
        ) from None


def clear() -> int:
    """Delete everything that is kept; return how many bytes that was.

    Raises:
        OSError: if something cannot be deleted, naming the subfolder that it is in.
    """
    size = 0
    for place in (folder() / kind for kind in KINDS):
        if place.exists():
            size += sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            try:
                shutil.rmtree(place)
            except OSError as error:  # It names a file, but not where that is.
                raise OSError(error.errno, error.strerror, str(place)) from error
    return size


def entry(kind: str, key: Key, make: Callable[[Path], object]) -> Path:
    """The folder of the entry for `key`; `make` fills it if it is missing, stale or damaged.

    Raises:
        OSError: if the cache cannot be written.
    """
    if found := find(kind, key):
        return found
    place = _place(kind, key)
    if place.exists():
        shutil.rmtree(place)
    return _made(place, key, make, replace=False)


def recall(kind: str, key: Key, read: Callable[[Any], T | None]) -> T | None:
    """What `read` makes of the JSON value that was written for `key`.

    None if there is none, or it cannot be read because another version wrote it, or `read` says so.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        if place := find(kind, key):
            return read(json.loads((place / _VALUE).read_text(encoding="utf-8")))
    return None


def write(kind: str, key: Key, value: Any) -> None:
    """Keep a JSON value for `key` in place of an earlier one; where nothing can be kept, warn."""

    def make(place: Path) -> None:
        (place / _VALUE).write_text(json.dumps(value), encoding="utf-8")

    try:
        renew(kind, key, make)
    except OSError as error:
        _warn(error.strerror or str(error))


@cache
def _warn(reason: str) -> None:
    """Say once that nothing is kept."""
    _log.warning(
        "nothing can be kept for the next start: %s. MIRROR_EDGE_CACHE can name another folder.",
        reason,
    )


def find(kind: str, key: Key) -> Path | None:
    """The folder of the entry for `key`, if it is there and undamaged."""
    place = _place(kind, key)
    if not place.exists():
        return None
    if not (wrong := _damage(place)):
        return place
    _log.warning("%s: %s; rebuilding it.", place, wrong)
    return None


def renew(kind: str, key: Key, make: Callable[[Path], object]) -> Path:
    """The folder of the entry for `key`, filled by `make` even if there was one.

    Raises:
        OSError: if the cache cannot be written.
    """
    return _made(_place(kind, key), key, make, replace=True)


def _made(place: Path, key: Key, make: Callable[[Path], object], *, replace: bool) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        make(made)
        files = {
            path.relative_to(made).as_posix(): digest(path)
            for path in sorted(made.rglob("*"))
            if path.is_file()
        }
        listed = json.dumps({"key": dict(key), "files": files}, indent=2)
        (made / _LIST).write_text(listed + "\n", encoding="utf-8")
        if replace:
            shutil.rmtree(place, ignore_errors=True)
        try:
            made.rename(place)
        except OSError:
            # Another process was faster, and its entry is as good.
            if _damage(place):
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place


def _place(kind: str, key: Key) -> Path:
    name = hashlib.sha256(json.dumps(sorted(key.items())).encode()).hexdigest()[:32]
    return folder() / kind / name


def _damage(place: Path) -> str:
    """What is wrong with an entry; empty if it is whole."""
    try:
        files = json.loads((place / _LIST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if digest(place / name) != expected:
                return f"{name} was changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its list is invalid ({type(error).__name__}: {error})"
    return ""
