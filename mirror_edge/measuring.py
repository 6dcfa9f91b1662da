"""Measuring what a step costs on the devices at hand: a second or two, before the first plan."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mirror_edge import kept
from mirror_edge.costs import Costs, Curve
from mirror_edge.hypotheses import Root
from mirror_edge.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from mirror_edge.answer import Decoder
    from mirror_edge.protocols import Clock, Drafter, ExitHead

__all__ = ["measure", "recall"]

_WINDOWS = (1, 2, 3, 4, 6, 8)
_ROOTS = (1, 2, 4, 8, 16, 32)
_CANDIDATES = 9
_DEPTH = 3
_SERIAL = (1, 4)
"""Tokens of a serial draft."""
_GOOD, _MOST = 3, 15
"""Rounds that count: so many are taken even where they last `_LONGER`, and at most."""
_LONGER = 3.0
"""Times as long as was asked for."""
_TINY = 1e-9
_FED = 16
"""Tokens in front of what is measured."""
_COSTS = "costs.json"


def recall(key: kept.Key, measured: Callable[[], Costs]) -> Costs:
    """What was measured under `key` at an earlier start, or is `measured` and kept."""
    found: list[Costs] = []

    def make(folder: Path) -> None:
        found.append(measured())
        (folder / _COSTS).write_text(json.dumps(asdict(found[-1])), encoding="utf-8")

    def read(folder: Path) -> Costs:
        return Costs.of(json.loads((folder / _COSTS).read_text(encoding="utf-8")))

    try:
        return kept.content("costs", key, make, read)
    except OSError:
        return found[-1] if found else measured()


class _Part(NamedTuple):
    """Something to measure, at several sizes."""

    timed: Callable[[int], tuple[float, ...]]
    sizes: Sequence[int]


def measure(decoder: Decoder, drafter: Drafter, seconds: float = 2.0) -> Costs:
    """The costs of this pair, in about so many seconds; runs on the target's lane.

    The caches of both models hold nothing of use afterwards.
    """
    target, lane, clock = decoder.target, decoder.draft_lane, decoder.clock
    sampler = Sampler(Sampling(), target.vocabulary)
    said: list[int] = []
    decoder.cached.clear()
    target.prefill([0] * _FED, 0)

    def window(rows: int) -> tuple[float, float, float]:
        times = [clock()]
        target.prefix([0] * rows, _FED, 0)
        times.append(clock())
        target.suffix()
        times.append(clock())
        target.prefix([0] * rows, _FED, _CANDIDATES)
        times.append(clock())
        first, second, third = (b - a for a, b in pairwise(times))
        return first, second, max(0.0, third - first)

    def exit_beside(rows: int, head: ExitHead) -> tuple[float]:
        target.prefix([0] * rows, _FED, 0)
        began = clock()
        lane.start("measure", head.signal, target.hidden(), _CANDIDATES).result()
        return (clock() - began,)

    def rolled_out(count: int) -> float:
        roots = [Root(0, token % target.vocabulary) for token in range(count)]
        began = clock()
        drafter.rollout([], [], roots, _DEPTH, sampler)
        return clock() - began

    def rollout(count: int) -> tuple[float]:
        return (lane.start("measure", rolled_out, count).result() / _DEPTH,)

    def suffix(roots: int) -> float:
        target.prefix([0] * 3, _FED, 0)
        done = lane.start("measure", rolled_out, roots) if roots else None
        began = clock()
        target.suffix()
        taken = clock() - began
        if done is not None:
            done.result()
        return taken

    def beside(roots: int) -> tuple[float]:
        # In turn, since the speed of a machine drifts.
        return (suffix(roots) / max(suffix(0), _TINY),)

    def accepted(tokens: int) -> float:
        """A serial draft behind the last one, whose last token has no row yet."""
        began = clock()
        branches = drafter.rollout(said, [], [Root(0, 0)], tokens, sampler)
        taken = clock() - began
        said[:] = [token for branch in branches for token in (0, *branch.tokens)]
        return taken

    def serial(tokens: int) -> tuple[float]:
        said.clear()
        lane.start("measure", accepted, tokens).result()
        suffix(0)  # What it has used since is in the caches, not the draft.
        return (lane.start("measure", accepted, tokens).result(),)

    parts = [_Part(window, _WINDOWS), _Part(rollout, _ROOTS)]
    parts += [_Part(serial, _SERIAL), _Part(beside, (8,))]
    if (head := decoder.exit_head) is not None:
        parts.append(_Part(partial(exit_beside, head=head), _WINDOWS))

    def begin() -> None:
        lane.start("prefill", drafter.prefill, [0] * _FED).result()

    windows, (draft,), (fresh,), ((slower,),), *others = _measured(parts, begin, clock, seconds)
    prefix, suffixes, exits = windows
    return Costs(
        prefix=Curve(_WINDOWS, prefix),
        exit=Curve(_WINDOWS, exits),
        suffix=Curve(_WINDOWS, suffixes),
        draft=Curve(_ROOTS, draft),
        exit_beside=Curve(_WINDOWS, others[0][0]) if others else None,
        beside=max(1.0, slower),
        fresh=Curve(_SERIAL, fresh),
    )


def _measured(
    parts: Sequence[_Part], begin: Callable[[], None], clock: Clock, seconds: float
) -> list[list[tuple[float, ...]]]:
    """What each part measures, by size: medians over some rounds, the first of which warms up.

    A round has a call of every size of every part, so that a machine's bad moment, of some tenths
    of a second, spoils a few rounds and no figure. More takes no less time than less does.
    """
    rounds: list[list[list[tuple[float, ...]]]] = []
    began = clock()

    def wanted() -> bool:
        counted, lasted = len(rounds) - 1, (clock() - began) / seconds
        return counted < 1 or (counted < _MOST and lasted < (1.0 if counted >= _GOOD else _LONGER))

    while wanted():
        begin()
        rounds.append([_round(part) for part in parts])
    found = []
    for calls in zip(*rounds[1:], strict=True):
        by_size = [
            tuple(map(statistics.median, zip(*some, strict=True)))
            for some in zip(*calls, strict=True)
        ]
        found.append([_rising(times) for times in zip(*by_size, strict=True)])
    return found


def _round(part: _Part) -> list[tuple[float, ...]]:
    """Every size once, after a call that has the processor's caches full of this part."""
    part.timed(part.sizes[0])
    return [part.timed(size) for size in part.sizes]


def _rising(times: Sequence[float]) -> tuple[float, ...]:
    """No time is longer than a later one."""
    return tuple(accumulate(reversed(times), min))[::-1]
