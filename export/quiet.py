"""Third-party code, run without its prints, progress bars, log records and warnings."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TextIO

__all__ = ["quiet", "without_bars"]


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Transformers, run without progress bars of its own."""
    from transformers.utils import logging as of_transformers

    shown = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            of_transformers.enable_progress_bar()


@contextlib.contextmanager
def quiet(lines: TextIO | None = None) -> Iterator[None]:
    """Suppress all output; what would be printed goes to `lines`, if given."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(lines or io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
