"""A target's hidden rows over texts, layer by layer, from its own graph: an exit head's data.

Rows are kept as the LM head would read them, after the final norm, where their size is known and
float16 is exact enough. This works for every source, quantised or not, and no second model is ever
in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mirror_edge.bundle import ModelSpec
from mirror_edge.errors import ExportError
from mirror_edge.export.exit_head import norm_and_head
from mirror_edge.export.full_graph import FullGraph
from mirror_edge.export.graph import element_type, part, value
from mirror_edge.export.reference import numpy_type, session, uncached
from mirror_edge.export.residuals import opened, residuals, tail_residual
from mirror_edge.export.split import split_target

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Head", "States", "collect", "scaffold"]

_ROWS = 64
"""Rows per run of a full LM head."""
_NOT_LINEAR = 0.05


@dataclass(frozen=True)
class States:
    """The hidden rows of some texts at several layers."""

    layers: Mapping[int, NDArray[np.float16]]
    """By layer, [rows, hidden]; the last layer is included."""
    lengths: tuple[int, ...]
    """Rows of each text."""


class Head:
    """A target's LM head as its graph computes it, from rows after the norm."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        """The head that `scaffold` left in `folder`."""
        self.spec = spec
        self._session = session(folder / "head.onnx")

    def logits(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Logits [rows, vocabulary] of rows [rows, hidden]."""
        fed = rows.astype(numpy_type(self.spec))[None]
        logits: NDArray[np.float32] = self._session.run(["logits"], {"normed": fed})[0][0]
        return logits

    def over(
        self, tokens: NDArray[np.int64], rows: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The head over `tokens` only, as a matrix [hidden, tokens] and a bias [tokens].

        They are found by feeding the graph unit rows, however its weights are stored.

        Raises:
            ExportError: when real `rows` show that the head is not linear.
        """
        hidden = self.spec.hidden
        bias = self.logits(np.zeros((1, hidden)))[0, tokens]
        unit = np.eye(hidden, dtype=np.float32)
        matrix = np.concatenate(
            [self.logits(unit[at : at + _ROWS])[:, tokens] for at in range(0, hidden, _ROWS)]
        )
        matrix -= bias
        wanted = self.logits(rows)[:, tokens]
        off = np.abs(rows.astype(np.float32) @ matrix + bias - wanted).mean() / wanted.std()
        if not off < _NOT_LINEAR:
            raise ExportError(
                "--calibrate: the target's LM head is not linear, so nothing can be fitted to it. "
                "Omit the option."
            )
        return matrix, bias


def scaffold(model: FullGraph, layers: Sequence[int]) -> list[Path]:
    """Write the graphs that `collect` and `Head` run next to the full one; returns their paths."""
    spec, folder = model.spec, model.folder
    norm, head = norm_and_head(split_target(model.model, spec, 1).tail, spec)
    pieces = {"states": _residuals(model, layers), "norm": norm, "head": head}
    for name, graph in pieces.items():
        onnx.save(graph, folder / f"{name}.onnx")
    return [folder / f"{name}.onnx" for name in pieces]


def _residuals(model: FullGraph, layers: Sequence[int]) -> onnx.ModelProto:
    """The full graph with the residuals after `layers` and after the last one as outputs."""
    spec = model.spec
    cuts = [residuals(model.model, spec, layer)[-1] for layer in layers]
    cuts.append(tail_residual(model.model, spec))
    whole = opened(model.model, set(cuts))
    for layer, cut in zip([*layers, spec.layers], cuts, strict=True):
        whole.graph.node.append(onnx.helper.make_node("Identity", [cut], [_name(layer)]))
    dims: list[int | str] = [1, "S", spec.hidden]
    outputs = [value(_name(layer), element_type(spec), dims) for layer in [*layers, spec.layers]]
    return part(whole, list(whole.graph.input), outputs)


def _name(layer: int) -> str:
    return f"states/{layer}"


def collect(
    model: FullGraph,
    layers: Sequence[int],
    texts: Sequence[NDArray[np.int64]],
    on_share: Callable[[float], None],
) -> States:
    """Run `texts`, each from an empty cache, and keep the rows of `layers` and of the last one.

    Raises:
        ExportError: for a target whose LM head does not read whole rows.
    """
    spec, count = model.spec, sum(map(len, texts))
    kept = {layer: np.empty((count, spec.hidden), np.float16) for layer in [*layers, spec.layers]}
    graph, norm = session(model.folder / "states.onnx"), session(model.folder / "norm.onnx")
    done = 0
    for text in texts:
        found = uncached(graph, spec, text, [_name(layer) for layer in kept])
        for rows, hidden in zip(kept.values(), found, strict=True):
            (normed,) = norm.run(["normed"], {"hidden": hidden})
            if normed.shape[-1] != spec.hidden:
                raise ExportError(
                    f"--calibrate: the target's LM head reads {normed.shape[-1]} of its "
                    f"{spec.hidden} features, for which no fit is known. Omit the option."
                )
            rows[done : done + len(text)] = normed[0]
        done += len(text)
        on_share(done / count)
    return States(kept, tuple(map(len, texts)))
