"""mirror-edge: local chat models on two devices at once, without changing a word.

    with mirror_edge.load() as model:
        print(model.generate([{"role": "user", "content": "Hello!"}]).text)

`load` opens a bundle; `Sampling` says how tokens are chosen, `Speculation` how far to guess ahead.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from mirror_edge.errors import (
    BundleError,
    BusyError,
    ClosedError,
    ContextError,
    DataError,
    DeviceError,
    ExportError,
    MirrorEdgeError,
    MissingExtraError,
    OptionError,
    TemplateError,
)

# ONNX Runtime's official builds report to their makers unless this is set before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from mirror_edge.api import Model, load
    from mirror_edge.grammar import Grammar
    from mirror_edge.policy import Speculation
    from mirror_edge.result import AnswerOptions, Chunk, Result
    from mirror_edge.sampling import Sampling
    from mirror_edge.text import Message

__all__ = [
    "AnswerOptions",
    "BundleError",
    "BusyError",
    "Chunk",
    "ClosedError",
    "ContextError",
    "DataError",
    "DeviceError",
    "ExportError",
    "Grammar",
    "Message",
    "MirrorEdgeError",
    "MissingExtraError",
    "Model",
    "OptionError",
    "Result",
    "Sampling",
    "Speculation",
    "TemplateError",
    "load",
]

_LAZY = {
    "AnswerOptions": "result",
    "Chunk": "result",
    "Grammar": "grammar",
    "Message": "text",
    "Model": "api",
    "Result": "result",
    "Sampling": "sampling",
    "Speculation": "policy",
    "load": "api",
}


def __getattr__(name: str) -> object:
    """Import on first use: `mirror-edge --help` should not wait for tokenizers."""
    if name not in _LAZY:
        raise AttributeError(f"module 'mirror_edge' has no attribute {name!r}")
    return getattr(import_module(f"mirror_edge.{_LAZY[name]}"), name)
