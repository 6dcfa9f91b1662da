"""Simulated devices: the real step loops, lanes and drafter, on forwards that cost what a profile
says and models that say what a script says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.answer import Answer, Decoder
from mirror_edge.decode import decode
from mirror_edge.driving import run
from mirror_edge.hypotheses import ExitSignal
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.virtual import VirtualClock, VirtualLane
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.trace import Span, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.policy import Strategy
    from mirror_edge.runtimes.profile import Profile
    from mirror_edge.runtimes.scripts import Script
    from mirror_edge.stats import Stats

__all__ = ["SimulatedDraft", "SimulatedTarget", "simulate"]


class _Device:
    """Forwards that take their time on the clock, and the states of the rows they have fed."""

    def __init__(self, script: Script, clock: VirtualClock, trace: Trace, slots: int) -> None:
        self._script, self._clock, self._trace = script, clock, trace
        self._states = np.zeros(slots, dtype=np.uint64)

    def _forward(self, lane: str, name: str, seconds: float) -> None:
        begin = self._clock()
        self._clock.sleep(seconds)
        self._trace.runs.append(Span(lane, name, begin, self._clock()))

    def _feed(self, tokens: NDArray[np.int64], start: int, parents: NDArray[np.int64]) -> None:
        """Put rows into slots `start`…, each after the row in its parent's slot (-1: the first)."""
        slots = np.arange(start, start + len(tokens))
        ready = parents < start
        known = np.where(
            parents[ready] < 0, np.uint64(self._script.start), self._states[parents[ready]]
        )
        self._states[slots[ready]] = self._script.after(known, tokens[ready])
        for row in np.flatnonzero(~ready):
            state = self._states[parents[row], None]
            self._states[slots[row]] = self._script.after(state, tokens[row, None])[0]

    def close(self) -> None:
        """Nothing to release."""


class SimulatedTarget(_Device):
    """A `Target` that takes the profile's time and says what the script's target says."""

    def __init__(
        self, profile: Profile, script: Script, clock: VirtualClock, trace: Trace, context: int
    ) -> None:
        """A target on `clock`; its forwards are recorded in `trace`."""
        super().__init__(script, clock, trace, context)
        self.context, self.vocabulary = context, script.vocabulary
        self._profile = profile
        self._rows = range(0)
        self._width = 0

    def prefill(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """See `Target.prefill`."""
        self.prefix(tokens, start, 0)
        self._forward("target", "suffix", self._profile.suffix(len(tokens)))
        return _certain(self._script.target(self._states[self._rows[-1:]]), self.vocabulary)

    def prefix(
        self, window: Sequence[int], start: int, candidates: int, width: int = 0
    ) -> ExitSignal | None:
        """See `Target.prefix`."""
        self._rows, self._width = range(start, start + len(window)), max(len(window), width)
        self._forward("target", "prefix", self._profile.prefix(self._width))
        self._feed(np.asarray(window), start, np.arange(start - 1, start + len(window) - 1))
        if candidates == 0:
            return None
        self._forward("target", "exit", self._profile.exit(self._width))
        return ExitSignal(*self._script.exit(self._states[self._rows], candidates))

    def suffix(self) -> NDArray[np.float32]:
        """See `Target.suffix`; the step's time in no device comes after it."""
        self._forward("target", "suffix", self._profile.suffix(self._width))
        self._clock.sleep(self._profile.host)
        return _certain(self._script.target(self._states[self._rows]), self.vocabulary)


class SimulatedDraft(_Device):
    """A `DraftGraph` that takes the profile's time and says what the script's draft says."""

    def __init__(
        self,
        profile: Profile,
        script: Script,
        clock: VirtualClock,
        trace: Trace,
        context: int,
        streams: int,
    ) -> None:
        """A draft on `clock`; its forwards are recorded in `trace`."""
        self.slots = context + profile.draft.branch_rows
        super().__init__(script, clock, trace, self.slots)
        self.context, self.vocabulary, self.streams = context, script.vocabulary, streams
        self._costs = profile.draft

    def forward(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        start: int,
        hidden: NDArray[np.bool_] | None,
        wanted: NDArray[np.int64],
        streamed: NDArray[np.int64] | None = None,
        ahead: int = 0,
    ) -> NDArray[np.float32]:
        """See `DraftGraph.forward`."""
        del positions
        extra = 0 if streamed is None else len(streamed) * ahead
        rows = len(tokens) + self._costs.stream_share * extra
        self._forward("draft", "draft", self._costs.forward(rows))
        parents = np.arange(start - 1, start + len(tokens) - 1)
        if hidden is not None:
            # A row stands after the last row before it that it sees; those in front are all seen.
            first = start + len(tokens) - hidden.shape[1]
            seen = ~hidden & (np.arange(first, first + hidden.shape[1]) <= parents[:, None])
            last = hidden.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
            parents = first + np.where(seen.any(axis=1), last, -1)
        self._feed(tokens, start, parents)
        said = self._script.draft(self._states[start + wanted])
        if streamed is not None and ahead:
            guesses = self._script.streams(self._states[start + streamed])[:, :ahead]
            said = np.concatenate([said, guesses.ravel()])
        return _certain(said, self.vocabulary)

    def move(self, slots: Sequence[int], start: int) -> None:
        """See `DraftGraph.move`."""
        self._states[start : start + len(slots)] = self._states[np.asarray(slots)]


def _beginning(script: Script, length: int) -> list[int]:
    """The first tokens of the script's text."""
    tokens, states = [], np.array([script.start], dtype=np.uint64)
    for _ in range(length):
        said = script.target(states)
        states = script.after(states, said)
        tokens.append(int(said[0]))
    return tokens


def _certain(tokens: NDArray[np.int64], vocabulary: int) -> NDArray[np.float32]:
    """Logits [n, vocabulary] of models without a doubt."""
    logits = np.zeros((len(tokens), vocabulary), dtype=np.float32)
    logits[np.arange(len(tokens)), tokens] = 1.0
    return logits


def simulate(
    profile: Profile,
    script: Script,
    strategy: Strategy,
    *,
    prompt_tokens: int = 64,
    new_tokens: int = 512,
    streams: int = 0,
    trace: Trace | None = None,
) -> Stats:
    """What an answer of `new_tokens` would cost; a function of its arguments alone.

    The prompt is the beginning of the script's text. The draft uses the first so many `streams`
    of the script.
    """
    clock, trace = VirtualClock(), trace or Trace()
    context = prompt_tokens + new_tokens
    drafter = None
    if strategy.mode != "ar":
        drafter = ModelDrafter(SimulatedDraft(profile, script, clock, trace, context, streams))
    decoder = Decoder(
        SimulatedTarget(profile, script, clock, trace, context + strategy.width),
        VirtualLane("target", trace, clock),
        VirtualLane("draft", trace, clock, hand_over=profile.hand_over),
        trace,
        clock,
    )
    prompt, sampler = _beginning(script, prompt_tokens), Sampler(Sampling(), script.vocabulary)
    answer = Answer(decoder, prompt, strategy, sampler, drafter, frozenset(), context)

    async def speak() -> None:
        async for _ in decode(answer):
            pass

    run(speak())
    if answer.stats.draft_losses:
        raise RuntimeError(f"the simulated draft broke: {answer.stats.draft_losses[0]}")
    return answer.stats
