"""Files that a command writes: whole or not at all."""

from __future__ import annotations

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
        if path.is_dir():
            raise OptionError(f"{path}: cannot be written (it is a folder).")
        if not path.parent.is_dir():
            raise OptionError(f"{path}: cannot be written (there is no folder {path.parent}).")
        if path.resolve() in seen:
            raise OptionError(f"{path}: two outputs cannot be written to one file; name another.")
        seen.add(path.resolve())


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
