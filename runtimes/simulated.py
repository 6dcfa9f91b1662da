"""The simulator: the real step loops and drafter, with a profile's times and a script's tokens.

Calls run on the lanes of a virtual clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.answer import Answer, Decoder
from mirror_edge.controller import Controller
from mirror_edge.decode import decode
from mirror_edge.driving import drive
from mirror_edge.growth import Guesses
from mirror_edge.hypotheses import ExitSignal
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.virtual import VirtualClock, VirtualLane
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.trace import Span, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.costs import Curve
    from mirror_edge.policy import Strategy
    from mirror_edge.runtimes.profile import Profile
    from mirror_edge.runtimes.scripts import Script
    from mirror_edge.stats import Stats

__all__ = ["Machine", "SimulatedDraft", "SimulatedExitHead", "SimulatedTarget", "simulate"]


_PARTS = 8
"""A forward is split into this many parts; each checks whether the other device is running."""


@dataclass
class Machine:
    """What both devices share: profile, clock and trace."""

    profile: Profile
    clock: VirtualClock = field(default_factory=VirtualClock)
    trace: Trace = field(default_factory=Trace)
    running: int = 0
    """Number of devices running a forward."""

    def forward(self, lane: str, name: str, seconds: float) -> None:
        """Spend the time of a forward: `seconds`, and more while the other device runs too."""
        beside = self.profile.costs.beside
        parts = 1 if beside == 1.0 else _PARTS
        begin = self.clock()
        self.running += 1
        for _ in range(parts):
            self.clock.sleep(seconds / parts * (beside if self.running > 1 else 1.0))
        self.running -= 1
        self.trace.runs.append(Span(lane, name, begin, self.clock()))


class _Device:
    """Holds the script's state of every row fed, in place of a KV cache."""

    def __init__(self, machine: Machine, script: Script, slots: int) -> None:
        self._machine, self._script = machine, script
        self._states = np.zeros(slots, dtype=np.uint64)

    def _feed(self, tokens: NDArray[np.int64], start: int, parents: NDArray[np.int64]) -> None:
        """Put rows into slots `start`…, each after the row in slot `parents[row]` (-1: none)."""
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
    """A `Target` with the profile's times and the tokens of the script's target."""

    def __init__(self, machine: Machine, script: Script, context: int) -> None:
        """A target on `machine` that follows `script`."""
        super().__init__(machine, script, context)
        self.context, self.vocabulary = context, script.vocabulary
        self._costs = machine.profile.costs
        self._rows = range(0)
        self._width = 0

    def prefill(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """See `Target.prefill`."""
        self.prefix(tokens, start, 0)
        self._machine.forward("target", "suffix", self._costs.suffix(len(tokens)))
        return _certain(self._script.target(self._states[self._rows[-1:]]), self.vocabulary)

    def prefix(
        self, window: Sequence[int], start: int, candidates: int, width: int = 0
    ) -> ExitSignal | None:
        """See `Target.prefix`."""
        self._rows, self._width = range(start, start + len(window)), max(len(window), width)
        self._machine.forward("target", "prefix", self._costs.prefix(self._width))
        self._feed(np.asarray(window), start, np.arange(start - 1, start + len(window) - 1))
        if candidates == 0:
            return None
        self._machine.forward("target", "exit", self._costs.exit(self._width))
        return ExitSignal(*self._script.exit(self._states[self._rows], candidates))

    def hidden(self) -> NDArray[np.uint64]:
        """See `Target.hidden`: a row is its state."""
        return self._states[self._rows].copy()

    def suffix(self) -> NDArray[np.float32]:
        """See `Target.suffix`; the host's time per step is spent after it."""
        self._machine.forward("target", "suffix", self._costs.suffix(self._width))
        self._machine.clock.sleep(self._machine.profile.host)
        return _certain(self._script.target(self._states[self._rows]), self.vocabulary)

    def likeliest(self) -> NDArray[np.int64]:
        """See `Target.likeliest`."""
        ids: NDArray[np.int64] = self.suffix().argmax(axis=-1)
        return ids


class SimulatedExitHead:
    """An `ExitHead` on the draft's device, with the profile's times."""

    def __init__(self, machine: Machine, script: Script, costs: Curve) -> None:
        """An exit head on `machine` that follows `script`; `costs` is by rows."""
        self._machine, self._script, self._costs = machine, script, costs

    def signal(self, hidden: NDArray[np.uint64], candidates: int) -> ExitSignal:
        """See `ExitHead.signal`."""
        self._machine.forward("draft", "draft exit", self._costs(len(hidden)))
        return ExitSignal(*self._script.exit(hidden, candidates))

    def close(self) -> None:
        """Nothing to release."""


class SimulatedDraft(_Device):
    """A `DraftGraph` with the profile's times and the tokens of the script's draft."""

    def __init__(self, machine: Machine, script: Script, context: int, streams: int) -> None:
        """A draft on `machine` that follows `script`."""
        self.slots = context + machine.profile.branch_rows
        super().__init__(machine, script, self.slots)
        self.context = self.main = context
        self.streams = streams
        self.vocabulary = self.named = script.vocabulary

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
        profile = self._machine.profile
        rows = len(tokens) + profile.stream_share * extra
        self._machine.forward("draft", "draft", profile.costs.draft(rows))
        parents = np.arange(start - 1, start + len(tokens) - 1)
        if hidden is not None:
            # A row follows the last earlier row that it sees; slots before `first` are all seen.
            first = start + len(tokens) - hidden.shape[1]
            seen = ~hidden & (np.arange(first, first + hidden.shape[1]) <= parents[:, None])
            last = hidden.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
            parents = first + np.where(seen.any(axis=1), last, -1)
        self._feed(tokens, start, parents)
        drafted = self._script.draft(self._states[start + wanted])
        if streamed is not None and ahead:
            guesses = self._script.streams(self._states[start + streamed])[:, :ahead]
            drafted = np.concatenate([drafted, guesses.ravel()])
        return _certain(drafted, self.vocabulary)

    def stop(self) -> None:
        """See `DraftGraph.stop`: it does nothing."""

    def move(self, slots: Sequence[int], start: int) -> None:
        """See `DraftGraph.move`."""
        self._states[start : start + len(slots)] = self._states[np.asarray(slots)]


@lru_cache(maxsize=1)  # A plan simulates many answers to one prompt.
def _beginning(script: Script, length: int) -> tuple[int, ...]:
    """The first tokens of the script's text."""
    tokens, states = [], np.array([script.start], dtype=np.uint64)
    for _ in range(length):
        following = script.target(states)
        states = script.after(states, following)
        tokens.append(int(following[0]))
    return tuple(tokens)


def _certain(tokens: NDArray[np.int64], vocabulary: int) -> NDArray[np.float32]:
    """One-hot logits [n, vocabulary]."""
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
    choices: Sequence[Strategy] = (),
    trace: Trace | None = None,
) -> Stats:
    """Simulate an answer of `new_tokens` tokens; the result depends only on the arguments.

    The prompt is the first `prompt_tokens` of the script's text. The draft uses the first `streams`
    streams of the script. With `choices`, the controller of mode `auto` plans every step, using the
    profile's costs as if it had measured them.
    """
    machine, context = Machine(profile, trace=trace or Trace()), prompt_tokens + new_tokens
    drafter = None
    if strategy.mode != "ar" or choices:
        graph = SimulatedDraft(machine, script, context, streams)
        # A script's streams have no second choice, so siblings would only cost time.
        clock = machine.clock if choices else None
        drafter = ModelDrafter(graph, Guesses(graph.streams), clock)
    exits = profile.costs.exit_beside
    decoder = Decoder(
        SimulatedTarget(machine, script, context + strategy.width),
        VirtualLane("target", machine.trace, machine.clock),
        VirtualLane("draft", machine.trace, machine.clock, hand_over=profile.hand_over),
        machine.trace,
        machine.clock,
        exit_head=None if exits is None else SimulatedExitHead(machine, script, exits),
    )
    answer = Answer(
        on=decoder,
        tokens=list(_beginning(script, prompt_tokens)),
        plan=strategy,
        sampler=Sampler(Sampling(), script.vocabulary),
        drafter=drafter,
        eos=frozenset(),
        limit=context,
        controller=Controller(profile.costs) if choices else None,
        choices=choices,
    )
    for _ in drive(decode(answer)):
        pass
    if answer.stats.draft_losses:
        raise RuntimeError(f"the simulated draft failed: {answer.stats.draft_losses[0]}")
    return answer.stats
