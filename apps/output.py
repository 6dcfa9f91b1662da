"""Files that a command writes: whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mirror_edge.errors import OptionError

__all__ = ["check", "write"]


def check(*paths: Path | None) -> None:
    """Refuse files that could not be written, each, before any work is done for them.

    Raises:
        OptionError: naming the file.
    """
    seen: set[Path] = set()
    for path in paths:
        if path is None:
            continue
        if why := _obstacle(path):
            raise OptionError(f"{path}: cannot be written ({why}).")
        if path.resolve() in seen:
            raise OptionError(f"{path}: two outputs cannot be written to one file; name another.")
        seen.add(path.resolve())


def write(path: Path, content: str) -> None:
    """Write the whole file or nothing; a device or a pipe is written to, and a link is followed.

    Raises:
        OptionError: for a file that cannot be written.
    """
    place = path.resolve()
    unfinished = place.with_name(f".{place.name}.unfinished")
    try:
        if place.exists() and not place.is_file():
            place.write_text(content, encoding="utf-8")
            return
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(place)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise OptionError(f"{path}: cannot be written ({error.strerror}).") from error


def _obstacle(path: Path) -> str:
    """Why a file cannot be written at `path`; empty if it can, as far as can be told."""
    try:
        if path.is_dir():
            return "it is a folder"
        folder = path.resolve().parent
        if not folder.is_dir():
            return f"there is no folder {folder if path.is_symlink() else path.parent}"
        whole = path.exists() and not path.is_file()  # As a device is.
        if not os.access(path if whole else folder, os.W_OK):
            return "permission denied"
    except OSError as error:
        return error.strerror or str(error)
    return ""
