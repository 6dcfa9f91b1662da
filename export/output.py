"""An output folder that is written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mirror_edge.bundle import MANIFEST
from mirror_edge.errors import ExportError, OptionError

__all__ = ["refuse_existing", "refuse_taken", "refuse_without_space", "whole_folder"]

_log = logging.getLogger("mirror_edge")


def refuse_existing(output: Path) -> None:
    """Refuse an `output` where there is something already.

    Raises:
        OptionError: naming it.
    """
    if output.exists():
        raise OptionError(f"-o {output}: already exists. Choose another folder, or delete it.")


def refuse_taken(output: Path, *, force: bool, label: str = MANIFEST, kind: str = "bundle") -> None:
    """Refuse an `output` that cannot be written, or where something is that may not be replaced.

    With `force`, a folder of this `kind` may be, which is known by its file `label`.

    Raises:
        OptionError: naming what is there.
    """
    if output.exists() and not force:
        raise OptionError(
            f"-o {output}: already exists. Choose another folder, or replace it with --force."
        )
    if output.is_dir() and any(output.iterdir()) and not (output / label).is_file():
        raise OptionError(
            f"-o {output}: is not a {kind}, so --force will not replace it. Choose another folder."
        )
    if output.is_file():
        raise OptionError(f"-o {output}: is a file. Choose a folder.")
    above = next(path for path in output.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OptionError(
            f"-o {output}: cannot be written, {above} is not writable. Choose another folder."
        )


@contextlib.contextmanager
def whole_folder(output: Path, refuse: Callable[[], None]) -> Iterator[Path]:
    """A temporary folder next to `output` that becomes `output` when the block ends well.

    It replaces what is there by then, unless `refuse` raises: a long block gives others the time to
    create something.

    Raises:
        OptionError: when `output` cannot be written.
        ExportError: when the disk is full, or another error of the system.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    except OSError as error:
        raise OptionError(
            f"-o {output}: cannot be written ({error.strerror}). Choose another folder."
        ) from error
    try:
        yield partial
        refuse()
        partial.chmod(0o755)
        _replace(partial, output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(output) from error
        raise ExportError(f"{error.filename or output}: {error.strerror or error}.") from error
    except Exception as error:
        if _ran_out(error):
            raise _no_space(output) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_without_space(output: Path, needed: int) -> None:
    """Refuse to start when the disk that `output` goes to has less than `needed` bytes left.

    Raises:
        ExportError: with both numbers.
    """
    folder = next(path for path in output.absolute().parents if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"-o {output}: about {needed / 1e6:,.0f} MB are needed there while exporting, and "
            f"{free / 1e6:,.0f} MB are free. Free some space or choose another disk."
        )


def _replace(partial: Path, output: Path) -> None:
    """Move `partial` to `output`; what was there is only deleted once the new one is in place."""
    if not output.exists():
        partial.rename(output)
        return
    old = partial.with_name(partial.name + ".old")
    output.rename(old)
    try:
        partial.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if old.exists():
        _log.warning(
            "%s: what was there before could not all be deleted; it is in %s.", output, old
        )


def _no_space(output: Path) -> ExportError:
    return ExportError(
        f"-o {output}: the disk is full. Nothing was kept. Free some space or choose another disk."
    )


def _ran_out(error: BaseException | None) -> bool:
    """Whether a full disk caused `error`, whatever it was turned into on its way."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
