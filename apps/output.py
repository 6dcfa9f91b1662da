"""Files that a command writes: whole or not at all."""

from __future__ import annotations

from pathlib import Path

from mirror_edge.errors import OptionError

__all__ = ["check", "write"]


def check(path: Path | None) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises:
        OptionError: naming the file.
    """
    if path is None:
        return
    if path.is_dir():
        raise OptionError(f"{path}: cannot be written (it is a folder).")
    if not path.parent.is_dir():
        raise OptionError(f"{path}: cannot be written (there is no folder {path.parent}).")


def write(path: Path, content: str) -> None:
    """Write the whole file or nothing.

    Raises:
        OptionError: for a file that cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OptionError(f"{path}: cannot be written ({error.strerror}).") from error
