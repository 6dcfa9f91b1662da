"""What a target makes of texts, layer by layer, by its own graph: what an exit head learns from.

Rows are kept as the LM head would read them, behind the final norm, where their size is known and
float16 is exact enough. So one way serves every source, quantised or not, and no second model is
ever in memory.
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
from mirror_edge.export.graph import element_type, part, value
from mirror_edge.export.reference import numpy_type, session, uncached
from mirror_edge.export.residuals import opened, residuals, tail_residual
from mirror_edge.export.split import split_target
from mirror_edge.export.whole import Whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Head", "States", "collect", "scaffold"]

_ROWS = 64
"""Rows that go through a full LM head at once."""
_NOT_LINEAR = 0.05


@dataclass(frozen=True)
class States:
    """A row for every token of some texts, at several layers."""

    layers: Mapping[int, NDArray[np.float16]]
    """By layer, [rows, hidden]; the last layer's rows are among them."""
    lengths: tuple[int, ...]
    """Rows of each text."""


class Head:
    """A target's LM head as its graph computes it, from rows behind the norm."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        """The head that `scaffold` left in `folder`."""
        self.spec = spec
        self._session = session(folder / "head.onnx")

    def logits(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """[rows, vocabulary] of the rows [rows, hidden]."""
        fed = rows.astype(numpy_type(self.spec))[None]
        logits: NDArray[np.float32] = self._session.run(["logits"], {"normed": fed})[0][0]
        return logits

    def over(
        self, tokens: NDArray[np.int64], rows: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The head over `tokens` alone, as a matrix [hidden, tokens] and a bias [tokens].

        It is read off the graph by what it makes of unit rows, however its weights are stored.

        Raises:
            ExportError: when some real `rows` show that the head is no such matrix.
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
                "--calibrate: the target's LM head is more than a matrix, so nothing can be fitted "
                "to it. Leave the option out."
            )
        return matrix, bias


def scaffold(model: Whole, layers: Sequence[int]) -> list[Path]:
    """Write the graphs that `collect` and `Head` run beside the uncut one; return their paths."""
    spec, folder = model.spec, model.folder
    norm, head = norm_and_head(split_target(model.model, spec, 1).tail, spec)
    pieces = {"states": _residuals(model, layers), "norm": norm, "head": head}
    for name, graph in pieces.items():
        onnx.save(graph, folder / f"{name}.onnx")
    return [folder / f"{name}.onnx" for name in pieces]


def _residuals(model: Whole, layers: Sequence[int]) -> onnx.ModelProto:
    """The uncut graph with the residuals behind `layers` and behind the last one as outputs."""
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
    model: Whole,
    layers: Sequence[int],
    texts: Sequence[NDArray[np.int64]],
    on_share: Callable[[float], None],
) -> States:
    """Read `texts`, each from an empty cache, and keep the rows of `layers` and of the last one.

    Raises:
        ExportError: for a target whose LM head reads something else than whole rows.
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
                    f"{spec.hidden} features, and no fit is known for that. Leave the option out."
                )
            rows[done : done + len(text)] = normed[0]
        done += len(text)
        on_share(done / count)
    return States(kept, tuple(map(len, texts)))
