"""The expected logits of a draft's streams, computed differently than in the exported graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import ModelProto

from mirror_edge.bundle import ModelSpec
from mirror_edge.export.check import CachedGraph
from mirror_edge.export.reference import numpy_type
from mirror_edge.export.split import split_target
from mirror_edge.export.streams import Streams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]
    Ids = NDArray[np.int64]

__all__ = ["stream_logits"]


def stream_logits(
    model: ModelProto, spec: ModelSpec, folder: Path, streams: Streams, texts: Sequence[Ids]
) -> list[Rows]:
    """The logits [s, vocabulary] of the streams of each text's last row.

    To the top layers, the streams of a single row are just the next rows of a plain text: they have
    the next positions and see everything before. So the draft is cut in two like a target, without
    any tree or mask, and the streams are started in between, in numpy.
    """
    graphs = split_target(model, spec, spec.layers - streams.layers)
    below, above = folder / "below.onnx", folder / "above.onnx"
    onnx.save(graphs.prefix, below)
    onnx.save(graphs.suffix, above)
    logits = []
    for text in texts:
        length = len(text)
        total = length + streams.count
        hidden = CachedGraph(below, spec, length).run(0, length, input_ids=text[None])[0]
        starts = streams.starts(hidden[-1:].astype(np.float32))[0]
        rows = np.concatenate([hidden, starts.astype(numpy_type(spec))])
        last = np.arange(length, total)
        logits.append(
            CachedGraph(above, spec, total).run(0, total, hidden=rows[None], rows=last)[0]
        )
    below.unlink()
    above.unlink()
    return logits
