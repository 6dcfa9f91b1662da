"""Coverage Ω_κ: how often the target's next token is among the exit head's κ candidates.

At temperature 1 the target's token is sampled with the shared noise, and the candidates are ranked
with the same noise, out of as many as a decoder asks the exit head for. κ counts all candidates
here; a decoder drops the drafted token first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.hypotheses import ExitSignal
from mirror_edge.policy import Speculation, resolve
from mirror_edge.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.protocols import Target

__all__ = [
    "CANDIDATES",
    "CHUNK",
    "POOL",
    "TEMPERATURES",
    "ExitHead",
    "Rows",
    "Shares",
    "coverage",
    "entries",
    "rows_of",
    "signal",
]

CANDIDATES = (1, 2, 4, 8, 16)
"""κ"""
TEMPERATURES = (0.0, 1.0)
POOL = resolve(
    Speculation("mirror", candidates=max(CANDIDATES)),
    can_draft=True,
).pool(Sampling(temperature=1.0))
"""Candidates that a decoder asks the exit head for, before the noise ranks them."""
CHUNK = 64
"""Rows per forward: as many as a sampler keeps the noise of."""

ExitHead = tuple[int, str]
"""Its layer, and ``plain``, ``fitted``, or ``own`` for a bundle's."""
Shares = Mapping[float, Mapping[int, float]]
"""Ω by temperature and κ."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one text."""

    text: int
    """Which text; it seeds the noise."""
    start: int
    """The position of the first row; each row predicts the token after its position."""
    logits: NDArray[np.float32]
    """[rows, vocabulary], the target's."""
    signals: Mapping[ExitHead, ExitSignal]
    """The output of each exit head, `POOL` candidates per row."""


def coverage(chunks: Iterable[Rows]) -> dict[ExitHead, Shares]:
    """Ω of every exit head over `chunks`; each text has its own noise."""
    within: dict[tuple[ExitHead, float], NDArray[np.int64]] = {}
    count = 0
    for rows in chunks:
        positions = range(rows.start + 1, rows.start + 1 + len(rows.logits))
        count += len(rows.logits)
        for temperature in TEMPERATURES:
            sampler = Sampler(
                Sampling(temperature=temperature, seed=rows.text), rows.logits.shape[1]
            )
            truth = sampler.choose(rows.logits, positions)
            for name, signal in rows.signals.items():
                scores = sampler.scores(signal.ids, signal.logprobs, positions)
                order = np.argsort(-scores, axis=-1, kind="stable")[:, : max(CANDIDATES)]
                hits = np.take_along_axis(signal.ids, order, axis=-1) == truth[:, None]
                total = within.setdefault((name, temperature), np.zeros(len(CANDIDATES), np.int64))
                total += [hits[:, :kappa].any(axis=-1).sum() for kappa in CANDIDATES]
    shares: dict[ExitHead, dict[float, dict[int, float]]] = {}
    for (name, temperature), hits in within.items():
        shares.setdefault(name, {})[temperature] = {
            kappa: int(hit) / count for kappa, hit in zip(CANDIDATES, hits, strict=True)
        }
    return dict(shares)


def signal(logits: NDArray[np.float32], tokens: NDArray[np.int64] | None) -> ExitSignal:
    """The output of an exit head that gives `tokens` (None: all) these `logits` [rows, tokens]."""
    count = min(POOL, logits.shape[1])
    top = np.argpartition(-logits, count - 1, axis=-1)[:, :count]
    best = np.take_along_axis(logits, top, axis=-1)
    order = np.argsort(-best, axis=-1, kind="stable")
    ids, best = np.take_along_axis(top, order, axis=-1), np.take_along_axis(best, order, axis=-1)
    peak = best[:, :1]
    normaliser = peak + np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))
    return ExitSignal(ids if tokens is None else tokens[ids], best - normaliser)


def entries(covered: Mapping[ExitHead, Shares]) -> list[dict[str, Any]]:
    """As JSON: an entry for each exit head and temperature, with Ω by κ as `shares`."""
    return [
        {
            "layer": layer,
            "head": head,
            "temperature": temperature,
            "shares": {str(kappa): share for kappa, share in shares.items()},
        }
        for (layer, head), found in covered.items()
        for temperature, shares in found.items()
    ]


def rows_of(
    target: Target,
    layer: int,
    texts: Sequence[NDArray[np.int64]],
    on_share: Callable[[float], None],
) -> Iterator[Rows]:
    """The rows of a bundle's target over `texts`, with its exit head after `layer`."""
    total, done = sum(map(len, texts)), 0
    for number, text in enumerate(texts):
        for start in range(0, len(text), CHUNK):
            window = text[start : start + CHUNK].tolist()
            signal = target.prefix(window, start, POOL)
            assert signal is not None
            yield Rows(number, start, target.suffix(), {(layer, "own"): signal})
            done += len(window)
            on_share(done / total)
