"""Calibrating an exit head on text: its tokens, its correction, its coverage, its layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.export import sample
from mirror_edge.export.coverage import CHUNK, ExitHead, Rows, Shares, coverage, entries, signal
from mirror_edge.export.exit_fit import fit
from mirror_edge.export.exit_head import Correction, Exit
from mirror_edge.export.exit_layer import KAPPA, best, candidates, costs, expected_step
from mirror_edge.export.full_graph import FullGraph
from mirror_edge.export.source import OnProgress
from mirror_edge.export.states import Head, States, collect, scaffold
from mirror_edge.export.texts import Document

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.text import Text

    Ids = NDArray[np.int64]

__all__ = ["Calibration", "calibrate"]

_ROWS = 65536
"""The most rows to fit on."""
_MEMORY = 1 << 30
"""The most bytes of rows, in float16."""


@dataclass(frozen=True)
class Calibration:
    """A calibrated exit, and the measurements it was chosen by."""

    exit: Exit
    coverage: Mapping[ExitHead, Shares]
    held_out: int
    """Rows that coverage was measured on."""
    steps: Mapping[int, float]
    """By layer, the expected duration of a step in target passes."""

    def content(self) -> dict[str, Any]:
        """As ``coverage.json`` has it."""
        kept = self.exit.correction
        return {
            "held_out_rows": self.held_out,
            "rank": 0 if kept is None else kept.a.shape[1],
            "expected_step": {str(layer): step for layer, step in self.steps.items()},
            "coverage": entries(self.coverage),
        }


def calibrate(
    model: FullGraph,
    text: Text,
    documents: Sequence[Document],
    *,
    rank: int,
    layer: int | None,
    tokens: Callable[[NDArray[np.float64]], Ids | None],
    rollout: float | None,
    on_progress: OnProgress,
) -> Calibration:
    """Fit exit heads after several layers of a target and choose one of them.

    `layer` is the one to choose (None: the best), `tokens` chooses those that the exit head names,
    given how often each occurs, and `rollout` is what the draft reads, as in `Costs`.

    Raises:
        DataError: for too little text, or text that cannot be used.
        ExportError: for a target that no exit head can be fitted to.
    """
    spec = model.spec
    layers = candidates(spec.layers, layer)
    most = min(_ROWS + sample.HELD_OUT, _MEMORY // (2 * spec.hidden * (len(layers) + 1)))
    held_out, fitted = sample.divide(sample.texts_of(documents, text, spec.context, most))
    scaffolding = scaffold(model, layers)
    texts = [*held_out, *fitted]
    states = collect(model, layers, texts, lambda share: on_progress("Reading the text", share))
    head, border = Head(model.folder, spec), sum(map(len, held_out))
    final = states.layers[spec.layers]
    named = tokens(_counts(head, fitted, final[border : border + sample.HELD_OUT]))
    matrix, bias = head.over(np.arange(spec.vocabulary) if named is None else named, final[:CHUNK])

    corrections: dict[int, Correction | None] = {}
    for at in layers:
        done = len(corrections) / len(layers)

        def on_share(share: float, done: float = done) -> None:
            on_progress("Fitting the exit head", done + share / len(layers))

        rows = states.layers[at][border:]
        corrections[at] = fit(rows, final[border:], matrix, bias, rank, on_share)
    heads: dict[ExitHead, Correction | None] = {}
    for at, correction in corrections.items():
        heads |= {(at, "plain"): None, (at, "fitted"): correction}
    covered = coverage(_rows(states, held_out, head, heads, (matrix, bias), named, on_progress))
    for path in scaffolding:
        path.unlink()
    spent = costs(model.model, spec, len(bias), rank, rollout)
    steps = {at: expected_step(at, spent, _at_kappa(covered[at, "fitted"])) for at in layers}
    leave = layer or best(steps, spec.layers)
    return Calibration(Exit(leave, named, corrections[leave]), covered, border, steps)


def _at_kappa(shares: Shares) -> float:
    """Ω_8, averaged over temperatures."""
    return sum(found[KAPPA] for found in shares.values()) / len(shares)


def _counts(head: Head, texts: Sequence[Ids], final: NDArray[np.float16]) -> NDArray[np.float64]:
    """How often each token occurs, in the texts and in the target's own predictions."""
    counts = np.bincount(np.concatenate(texts), minlength=head.spec.vocabulary).astype(np.float64)
    for at in range(0, len(final), CHUNK):
        logits = head.logits(final[at : at + CHUNK])
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        counts += (weights / weights.sum(axis=-1, keepdims=True)).sum(axis=0)
    return counts


def _rows(
    states: States,
    texts: Sequence[Ids],
    head: Head,
    heads: Mapping[ExitHead, Correction | None],
    over: tuple[NDArray[np.float32], NDArray[np.float32]],
    tokens: Ids | None,
    on_progress: OnProgress,
) -> Iterator[Rows]:
    """The rows of `texts`, with the output of each exit head."""
    final, (matrix, bias) = states.layers[head.spec.layers], over
    total, done = sum(map(len, texts)), 0
    for number, text in enumerate(texts):
        for start in range(0, len(text), CHUNK):
            at = slice(done, done + min(CHUNK, len(text) - start))
            signals = {}
            for name, correction in heads.items():
                rows = states.layers[name[0]][at].astype(np.float32)
                rows = rows if correction is None else correction.apply(rows)
                signals[name] = signal(rows @ matrix + bias, tokens)
            yield Rows(number, start, head.logits(final[at]), signals)
            done = at.stop
            on_progress("Measuring coverage", done / total)
