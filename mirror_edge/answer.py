"""One answer as it grows, and what it asks of the two lanes.

While an answer is decoded, its state belongs to the target's lane, where every method here runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from typing import Literal

from mirror_edge.drafting import Drafting, Rollout
from mirror_edge.head_start import HeadStart
from mirror_edge.hypotheses import Branch, ExitSignal, Root, choose_roots, possible
from mirror_edge.lanes import Dropped
from mirror_edge.ngram import Lookup, Match
from mirror_edge.policy import Strategy
from mirror_edge.protocols import Clock, Drafter, ExitHead, Lane, Planner, Target
from mirror_edge.sampling import Sampler
from mirror_edge.stats import Stats
from mirror_edge.trace import Trace
from mirror_edge.verify import Verdict, verify, verify_greedy

__all__ = ["Answer", "Decoder", "FinishReason"]

FinishReason = Literal["stop", "length"]

_PREFILL_CHUNK = 512


@dataclass
class Decoder:
    """The devices of a loaded model, and the content of the target's cache."""

    target: Target
    target_lane: Lane
    draft_lane: Lane
    trace: Trace
    clock: Clock = time.perf_counter
    exit_head: ExitHead | None = None
    """A second one, on the draft's device, for plans that run it there."""
    cached: list[int] = field(default_factory=list)
    """The tokens whose rows the target's cache holds, from its start."""


@dataclass
class Answer:
    """One answer as it grows."""

    on: Decoder
    tokens: list[int]
    """Prompt and answer: everything that is committed."""
    plan: Strategy
    """The current step's."""
    sampler: Sampler
    drafter: InitVar[Drafter | None]
    """None in mode `ar`."""
    eos: frozenset[int]
    limit: int
    """`tokens` never grows beyond this length."""
    patience: float = 1.0
    """Seconds that a step waits for the draft at least, before it continues without."""
    controller: Planner | None = None
    """Plans every step in mode `auto`."""
    choices: Sequence[Strategy] = ()
    """The plans it may choose from."""
    lookup: Lookup | None = None
    """For plans with looked-up windows; None while the reader has it learn the prompt."""
    match: Match = field(default_factory=Match)
    """What it found for the current step, used or not."""
    otherwise: Strategy = field(init=False)
    """The current step's plan as it would be without a look-up."""
    planned: Strategy | None = None
    """For the next steps; the reader sets what the controller plans, so no step waits for it."""
    stats: Stats = field(default_factory=Stats)
    """Of the tokens handed out; the one part that belongs to the reader."""
    drafted: tuple[int, ...] = ()
    """d1..dγ of the window."""
    fed: int = 0
    """Prompt tokens that are in the target's cache."""
    fresh: Callable[[], Future[list[Branch]]] | None = None
    """The serial draft of the next window, where no branch was prepared for it."""
    dropped: Dropped = field(default_factory=Dropped)
    """Set when it, or the head start, is no longer wanted."""
    waited: float = 0.0
    """Seconds that the current step had to wait for it."""
    depth: int = 0
    """Draft tokens asked for the next window."""
    told: int = field(init=False)
    """How many of the tokens the drafter has been told of."""
    judged: int = 0
    """Draft tokens that the target accepted or rejected."""
    accepted: int = 0
    """Those it accepted."""
    passing: float = 0.0
    """When the target's latest pass began, on the decoder's clock."""
    passed: float = 0.0
    """Seconds that it took."""
    until: float = 0.0
    """When the latest step ended."""
    finish_reason: FinishReason | None = None

    def __post_init__(self, drafter: Drafter | None) -> None:
        """Take the drafter on its lane."""
        self.draft = Drafting(drafter, self.on.draft_lane)
        self.ahead = HeadStart(self.on.draft_lane, self.on.clock)
        self.planned = self.planned or self.plan
        self.otherwise, self.told = self.plan, len(self.tokens)
        self.guesser = self.sampler.for_guesses()

    @property
    def room(self) -> int:
        """The most tokens that may still come."""
        return self.limit - len(self.tokens)

    @property
    def _depth(self) -> int:
        """Tokens to prepare after each outcome of this window."""
        return min(self.plan.window, self.room - 2)

    @property
    def agreement(self) -> float:
        """The acceptance rate so far; a half before the first draft token."""
        return (self.accepted + 1) / (self.judged + 2)

    def next_plan(self) -> None:
        """Plan the next step."""
        self.waited, self.depth = 0.0, 0
        plan = self.planned or self.plan
        self.plan = self.otherwise = plan if self._can_draft() else replace(plan, mode="ar")

    def look_up(self) -> None:
        """Look this step's window up instead, if there is a match that the plan prefers."""
        known, plan = self.lookup, self.plan
        if known is None:
            return
        known.learn(self.tokens[len(known.text) :])
        self.match = self._match(known, known.text[-known.longest :])
        if window := _preferred(plan, self.match):
            self.without_draft()
            self.drafted = self.match.tokens[:window]
            self.plan = replace(plan, mode="sd", drafter="ngram", window=window)

    def catch_up(self) -> None:
        """Let the draft read first if it is wanted and has missed much; the target goes on."""
        plan = self.plan
        if plan.mode == "ar" or plan.drafter == "ngram" or self.drafted or self.fresh is not None:
            return
        if self.draft.catch_up(self.tokens, len(self.tokens) - self.told, self.guesser):
            self.told = len(self.tokens)
            self.plan = self.otherwise = replace(plan, mode="ar")

    def _match(self, known: Lookup, tail: Sequence[int]) -> Match:
        """As many tokens as any plan wants, and at least one, to learn from."""
        most = max((1, *self.otherwise.look_up))
        return known.match(tail, max(0, min(most, self.room - 1)))

    def reuse(self) -> int:
        """Keep the rows that the target's cache shares with the prompt; returns how many.

        The last prompt token is always fed, since its logits are needed. A strict answer keeps
        none, because rounding may depend on how the rows were computed.
        """
        on, kept = self.on, 0
        most = 0 if self.plan.width else min(len(on.cached), len(self.tokens) - 1)
        while kept < most and on.cached[kept] == self.tokens[kept]:
            kept += 1
        del on.cached[kept:]
        self.fed = kept
        return kept

    def prefill(self) -> int | None:
        """Feed a chunk of the prompt; after the last one, the first token of the answer."""
        chunk = self.tokens[self.fed : self.fed + _PREFILL_CHUNK]
        logits = self.on.target.prefill(chunk, self.fed)
        self.on.cached += chunk
        self.fed += len(chunk)
        if self.fed < len(self.tokens):
            return None
        histories = [self.tokens] if self.sampler.needs_history else None
        return int(self.sampler.choose(logits, [len(self.tokens)], histories)[0])

    def await_draft(self) -> None:
        """Take the fresh draft that is in progress, if any, into the window."""
        if self.fresh is not None:
            began = self.on.clock()
            found = self.branches(self.fresh())
            self.fresh, self.drafted = None, found[0].tokens if found else ()
            self.waited = self.on.clock() - began
        self.drafted = self.drafted[: self.plan.window]

    def without_draft(self) -> None:
        """Give up the fresh draft that is in progress, if any."""
        self.dropped.set()
        if self.fresh is not None:
            self.fresh()  # It carries tokens that the drafter must be told of.
        self.fresh, self.drafted = None, ()

    def prefix(self, candidates: int) -> ExitSignal | None:
        """Take the window through layers 1..E and the target's exit head."""
        self.passing = self.on.clock()
        window, start = (self.tokens[-1], *self.drafted), len(self.tokens) - 1
        return self.on.target.prefix(window, start, candidates, self.plan.width)

    def head_start(self) -> None:
        """Have the draft go on with its own choice, for about as long as the prefix will take."""
        drafter, tokens = self.draft.drafter, min(self.ahead.fitting(), self._depth)
        self.ahead.none()
        self.dropped = Dropped()
        if drafter is None or tokens < 1 or not self.plan.head_start:
            return
        own = self._news(), self.drafted, (), tokens - 1, self.guesser, self.dropped
        self.ahead.make(tokens, partial(drafter.rollout, *own))

    def foreseen(self) -> Callable[[], ExitSignal]:
        """Run prefix and exit head; the result gives the signal, on the draft's lane."""
        candidates = self.plan.pool(self.sampler.sampling)
        beside = self.plan.exit_head == "draft"
        signal = self.prefix(candidates=0 if beside else candidates)
        self.ahead.beside(self.on.clock() - self.passing)
        self.dropped.set()  # The head start goes no further.
        if signal is not None:
            return lambda: signal
        head = self.on.exit_head
        assert head is not None
        hidden = self.on.target.hidden()
        return self.on.draft_lane.start("exit head", head.signal, hidden, candidates).result

    def suffix(self) -> Verdict:
        """Take the window through layers E+1..N: which draft tokens are accepted."""
        target, sampler = self.on.target, self.sampler
        if sampler.is_greedy:
            verdict = verify_greedy(target.likeliest(), self.drafted)
        else:
            verdict = verify(target.suffix(), self.tokens, self.drafted, sampler)
        self.passed = self.on.clock() - self.passing
        return verdict

    def rollout(self, foreseen: Callable[[], ExitSignal]) -> Rollout:
        """Have the draft prepare for the most likely outcomes, by the exit head's candidates."""
        plan, drafter, sampler = self.plan, self.draft.drafter, self.guesser
        depth = self._depth
        ranking: list[Root] = []
        dropped = Dropped()
        if drafter is None or depth < 1:
            return Rollout(self.branches, None, ranking, 0, dropped)
        news, drafted, position = self._news(), self.drafted, len(self.tokens)
        agreement = self.agreement
        self.depth, ahead = depth, self.ahead.made()
        before = None if sampler.constraint is None else list(self.tokens)

        def call() -> list[Branch]:
            ahead()  # Where it failed, so does this.
            signal = foreseen()
            if before is not None:
                signal = possible(signal, before, drafted, sampler)
            ranking[:] = choose_roots(
                signal, drafted, position, plan.candidates, agreement, sampler
            )
            return drafter.rollout(news, drafted, ranking[: plan.branches], depth, sampler, dropped)

        made = self.on.draft_lane.start("rollout", call)
        return Rollout(self.branches, made, ranking, plan.branches, dropped)

    def draft_after(self, verdict: Verdict) -> None:
        """Start the draft of the next window, before this one's tokens are handed out.

        There is none if the next window will be looked up.
        """
        drafted, plan = self.drafted[: verdict.accepted], self.otherwise
        depth = min(plan.window, self.room - len(drafted) - 2)
        drafter = self.draft.drafter if plan.mode != "ar" else None
        if drafter is None or depth < 1 or not self.eos.isdisjoint((*drafted, verdict.correction)):
            return
        if plan.look_up and self.lookup is not None:
            longest = self.lookup.longest
            tail = [*self.tokens[-longest:], *drafted, verdict.correction][-longest:]
            if _preferred(plan, self._match(self.lookup, tail)):
                return
        call, roots, self.dropped = drafter.rollout, [Root(*verdict)], Dropped()
        self.depth = depth
        self.fresh = self.on.draft_lane.later(
            "fresh", call, self._news(), drafted, roots, depth, self.guesser, self.dropped
        )

    def branches(self, made: Future[list[Branch]]) -> list[Branch]:
        """What the draft prepared; nothing if it was lost, which costs speed but never text.

        It is waited for no longer than the target alone would take for a window's tokens.
        """
        return self.draft.take(made, max(self.patience, (self.plan.window + 1) * self.passed))

    def _news(self) -> list[int]:
        """The tokens that the drafter is told of next."""
        told, self.told = self.told, len(self.tokens)
        return self.tokens[told:]

    def _can_draft(self) -> bool:
        """Whether this step has a draft; there may be none, or it is late or lost."""
        self.draft.settle()
        if self.draft.returned(self.tokens):
            self.told = len(self.tokens)
        return self.draft.drafter is not None

    def commit(self, verdict: Verdict, branch: Branch | None) -> list[int]:
        """Append what the target decided; the next window carries `branch`."""
        if self.plan.drafter == "model":
            self.accepted += verdict.accepted
            self.judged += min(verdict.accepted + 1, len(self.drafted))
        said = [*self.drafted[: verdict.accepted], verdict.correction][: self.room]
        ends = [index for index, token in enumerate(said) if token in self.eos]
        if ends:
            said, self.finish_reason = said[: ends[0] + 1], "stop"
        elif len(said) == self.room:
            self.finish_reason = "length"
        self.tokens += said
        # The last token's row is written by the next window, and so are those after it.
        self.on.cached += self.tokens[len(self.on.cached) : -1]
        self.drafted = () if branch is None else branch.tokens[: max(0, self.room - 1)]
        return said


def _preferred(plan: Strategy, match: Match) -> int:
    """The window that `plan` would look up for such a match; 0 for none."""
    known = 0 < match.length <= len(plan.look_up)
    return min(plan.look_up[match.length - 1], len(match.tokens)) if known else 0
