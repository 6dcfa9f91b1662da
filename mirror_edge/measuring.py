"""Measures what a step's parts cost on the devices in use: some seconds, before the first plan."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from mirror_edge.costs import Costs, Curve
from mirror_edge.hypotheses import Root
from mirror_edge.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from mirror_edge.answer import Decoder
    from mirror_edge.protocols import Clock, Drafter, ExitHead

__all__ = ["measure"]

_WINDOWS = (1, 2, 3, 4, 6, 8)
"""Rows of the windows that are measured."""
_ROOTS = (1, 2, 4, 8, 16, 32)
"""Roots of the rollouts that are measured."""
_CANDIDATES = 9
_DEPTH = 3
"""Tokens per branch of these."""
_SERIAL = (1, 4)
"""Tokens of the serial drafts that are measured."""
_GOOD, _MOST = 3, 15
"""Rounds that count: at most `_MOST`, and no more than `_GOOD` where they are slow."""
_LONGER = 3.0
"""How many times longer than asked for slow rounds may take in total."""
_TINY = 1e-9
_FED = 16
"""Tokens before the rows that are measured."""


class _Part(NamedTuple):
    """Something to measure, at several sizes."""

    timed: Callable[[int], tuple[float, ...]]
    """Seconds, or a factor, at a size."""
    sizes: Sequence[int]


def measure(decoder: Decoder, drafter: Drafter, seconds: float = 2.0) -> Costs:
    """The costs of this pair, measured in about `seconds` seconds; runs on the target's lane.

    The caches of both models hold nothing of use afterwards.
    """
    timed = _Timed(decoder, drafter)
    parts = [_Part(timed.window, _WINDOWS), _Part(timed.rollout, _ROOTS)]
    parts += [_Part(timed.serial, _SERIAL), _Part(timed.beside, (8,))]
    if (head := decoder.exit_head) is not None:
        parts.append(_Part(partial(timed.exit_beside, head=head), _WINDOWS))
    found = _measured(parts, timed.begin, decoder.clock, seconds)
    (prefix, suffix, exits), (draft,), (fresh,), ((slower,),), *others = found
    return Costs(
        prefix=Curve(_WINDOWS, prefix),
        exit=Curve(_WINDOWS, exits),
        suffix=Curve(_WINDOWS, suffix),
        draft=Curve(_ROOTS, draft),
        exit_beside=Curve(_WINDOWS, others[0][0]) if others else None,
        beside=max(1.0, slower),
        fresh=Curve(_SERIAL, fresh),
    )


class _Timed:
    """The parts of a step, timed one call at a time, after a short text of `_FED` tokens."""

    def __init__(self, decoder: Decoder, drafter: Drafter) -> None:
        """Have the target read the text, which replaces what its cache held."""
        self._target, self._lane, self._clock = decoder.target, decoder.draft_lane, decoder.clock
        self._drafter = drafter
        self._sampler = Sampler(Sampling(), self._target.vocabulary)
        self._drafted: list[int] = []
        """The last serial draft, which the next one takes as committed."""
        decoder.cached.clear()
        self._target.prefill([0] * _FED, 0)

    def begin(self) -> None:
        """Have the draft read the text."""
        self._lane.start("prefill", self._drafter.prefill, [0] * _FED).result()

    def window(self, rows: int) -> tuple[float, float, float]:
        """Prefix, suffix and exit head."""
        times = [self._clock()]
        self._target.prefix([0] * rows, _FED, 0)
        times.append(self._clock())
        self._target.suffix()
        times.append(self._clock())
        self._target.prefix([0] * rows, _FED, _CANDIDATES)
        times.append(self._clock())
        prefix, suffix, both = (b - a for a, b in pairwise(times))
        return prefix, suffix, max(0.0, both - prefix)

    def rollout(self, roots: int) -> tuple[float]:
        """A forward of a rollout."""
        return (self._lane.start("measure", self._roll_out, roots).result() / _DEPTH,)

    def serial(self, tokens: int) -> tuple[float]:
        """A serial draft right after a pass of the target."""
        self._drafted.clear()
        self._lane.start("measure", self._draft, tokens).result()
        self._suffix(0)  # By now the draft has left the CPU caches.
        return (self._lane.start("measure", self._draft, tokens).result(),)

    def beside(self, roots: int) -> tuple[float]:
        """How many times longer the suffix takes while a rollout runs."""
        # In turn, since the speed of a machine drifts.
        return (self._suffix(roots) / max(self._suffix(0), _TINY),)

    def exit_beside(self, rows: int, head: ExitHead) -> tuple[float]:
        """The exit head on the draft's device, including the transfer of the hidden rows."""
        self._target.prefix([0] * rows, _FED, 0)
        began = self._clock()
        self._lane.start("measure", head.signal, self._target.hidden(), _CANDIDATES).result()
        return (self._clock() - began,)

    def _suffix(self, roots: int) -> float:
        """Seconds of the suffix, while a rollout runs if there are roots."""
        self._target.prefix([0] * 3, _FED, 0)
        done = self._lane.start("measure", self._roll_out, roots) if roots else None
        began = self._clock()
        self._target.suffix()
        taken = self._clock() - began
        if done is not None:
            done.result()
        return taken

    def _roll_out(self, count: int) -> float:
        """Seconds of a rollout; on the draft's lane."""
        roots = [Root(0, token % self._target.vocabulary) for token in range(count)]
        began = self._clock()
        self._drafter.rollout([], [], roots, _DEPTH, self._sampler)
        return self._clock() - began

    def _draft(self, tokens: int) -> float:
        """Seconds of a serial draft after the last one, whose last token has no row yet."""
        began = self._clock()
        branches = self._drafter.rollout(self._drafted, [], [Root(0, 0)], tokens, self._sampler)
        taken = self._clock() - began
        self._drafted[:] = [token for branch in branches for token in (0, *branch.tokens)]
        return taken


def _measured(
    parts: Sequence[_Part], begin: Callable[[], None], clock: Clock, seconds: float
) -> list[list[tuple[float, ...]]]:
    """What each part measures, by size: medians over several rounds; the first only warms up.

    A round calls every size of every part once, so that a brief slowdown of the machine spoils a
    few rounds but no result. Times that should not fall with size are made not to.
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
    """Every size once, after a call that brings this part into the CPU caches."""
    part.timed(part.sizes[0])
    return [part.timed(size) for size in part.sizes]


def _rising(times: Sequence[float]) -> tuple[float, ...]:
    """`times`, each lowered to the least of those after it."""
    return tuple(accumulate(reversed(times), min))[::-1]
