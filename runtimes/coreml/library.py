"""coremltools, imported on first use and without its warnings."""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any

from mirror_edge.errors import MissingExtraError

__all__ = ["coremltools"]


def coremltools() -> Any:
    """The imported package.

    Raises:
        MissingExtraError: if it is not installed.
    """
    # It warns about what is unavailable outside macOS and about untested versions of torch.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("coremltools")
    except ImportError as error:
        raise MissingExtraError(
            f"Core ML packages need {error.name or 'coremltools'}, which is not installed. "
            "Install it with: pip install 'mirror-edge[coreml]'"
        ) from error
