"""The step loops: how target and draft take turns, or run side by side.

A step feeds the window (the last committed token and the drafted ones) to the target, commits what
the target says, and leaves the next window's draft behind. `ar`, `sd` and `mirror` differ only in
when the draft works: never, after the target, or while the target's suffix runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from mirror_edge.hypotheses import Branch, ExitSignal, HypothesisTree, Root, choose_roots
from mirror_edge.policy import Mode, Strategy
from mirror_edge.protocols import Clock, Drafter, Lane, Target
from mirror_edge.sampling import Sampler
from mirror_edge.stats import Stats, StepRecord
from mirror_edge.trace import Trace
from mirror_edge.verify import Verdict, verify

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Answer", "Decoder", "decode"]

_log = logging.getLogger("mirror_edge")

T = TypeVar("T")

_PREFILL_CHUNK = 512


@dataclass
class Decoder:
    """The devices of a loaded model, and what stands in the target's cache."""

    target: Target
    target_lane: Lane
    draft_lane: Lane
    trace: Trace
    clock: Clock = time.perf_counter
    cached: list[int] = field(default_factory=list)
    """Tokens whose rows the target's cache holds from its start."""


@dataclass
class Answer:
    """One answer as it grows."""

    on: Decoder
    tokens: list[int]
    """Prompt and answer: all that is committed."""
    strategy: Strategy
    sampler: Sampler
    drafter: Drafter | None
    """None in mode `ar`, and after the draft was lost."""
    eos: frozenset[int]
    limit: int
    """`tokens` never grows beyond this length."""
    stats: Stats = field(default_factory=Stats)
    drafted: tuple[int, ...] | None = None
    """d1..dγ of the next window; None if they were not prepared."""
    fresh: asyncio.Future[list[Branch]] | None = None
    """The serial draft of the next window, where no branch was prepared for it."""
    untold: list[int] = field(default_factory=list)
    """Committed tokens that the drafter has not heard of."""
    ahead: deque[asyncio.Future[int]] = field(default_factory=deque)
    """Steps of the target alone that are queued on its lane."""
    said_alone: list[int] = field(default_factory=list)
    """`tokens` as these steps know them: the lane's own, ahead by what is queued."""
    judged: int = 0
    """Draft tokens that the target said yes or no to."""
    agreed: int = 0
    """Those it said yes to."""
    finish_reason: Literal["stop", "length"] | None = None

    def prefix(self, candidates: int) -> asyncio.Future[ExitSignal | None]:
        """Start the window on the target: layers 1..E and the exit head."""
        window, start = (self.tokens[-1], *(self.drafted or ())), len(self.tokens) - 1
        target, lane, width = self.on.target, self.on.target_lane, self.strategy.width
        return lane.start("prefix", target.prefix, window, start, candidates, width)

    def suffix(self) -> asyncio.Future[NDArray[np.float32]]:
        """Finish the window: layers E+1..N. Queued at once, it follows the prefix without a gap."""
        return self.on.target_lane.start("suffix", self.on.target.suffix)

    def alone(self) -> asyncio.Future[int]:
        """Queue a step without draft behind the ones that are queued: the token it will say.

        It is sampled on the target's lane, so that the device need not wait for anybody between
        two tokens. A step too many, at the end of an answer, writes rows that nobody keeps.
        """
        if not self.ahead:
            self.said_alone = list(self.tokens)
        said, target, sampler = self.said_alone, self.on.target, self.sampler

        def step() -> int:
            target.prefix(said[-1:], len(said) - 1, 0, self.strategy.width)
            said.append(verify(target.suffix(), said, (), sampler).correction)
            return said[-1]

        return self.on.target_lane.start("alone", step)

    def verify(self, logits: NDArray[np.float32]) -> Verdict:
        """What the target says to the window."""
        return verify(logits, self.tokens, self.drafted or (), self.sampler)

    def rollout(self, signal: asyncio.Future[ExitSignal | None]) -> Rollout:
        """Have the draft prepare for the likeliest outcomes, as soon as the exit head names them.

        The token channel goes straight from lane to lane, while the suffix is under way.
        """
        plan, drafter, depth = self.strategy, self.drafter, min(self.strategy.window, self.room - 2)
        roots: list[Root] = []
        dropped = Event()
        if drafter is None or depth < 1:
            return Rollout(_done([]), roots, dropped)
        told, self.untold = self.untold, []
        drafted, position, agreement = self.drafted or (), len(self.tokens), self.agreement

        def call(signal: ExitSignal | None) -> list[Branch]:
            assert signal is not None
            roots.extend(
                choose_roots(
                    signal,
                    drafted,
                    position,
                    plan.candidates,
                    plan.branches,
                    agreement,
                    self.sampler,
                )
            )
            return drafter.rollout(told, drafted, roots, depth, self.sampler, dropped)

        return Rollout(self.on.draft_lane.follow(signal, "rollout", call), roots, dropped)

    async def branches(self, rollout: asyncio.Future[list[Branch]]) -> list[Branch]:
        """What the draft prepared; nothing if it was lost, which costs speed and never text."""
        try:
            return await rollout
        except Exception as error:
            self.lose_draft(error)
            return []

    def draft_after(self, verdict: Verdict) -> None:
        """Set the draft to work on the next window, before anybody has read this one's tokens."""
        drafted = self.drafted or ()
        said = (*drafted[: verdict.accepted], verdict.correction)
        depth = min(self.strategy.window, self.room - len(said) - 1)
        if self.drafter is None or depth < 1 or not self.eos.isdisjoint(said):
            return
        told, self.untold = self.untold, []
        call, roots = self.drafter.rollout, [Root(*verdict)]
        self.fresh = self.on.draft_lane.start(
            "fresh", call, told, drafted, roots, depth, self.sampler
        )

    async def window(self) -> tuple[int, ...]:
        """d1..dγ of this step's window: prepared, or the fresh draft that is under way."""
        if self.drafted is None:
            found = [] if self.fresh is None else await self.branches(self.fresh)
            self.drafted = found[0].tokens if found else ()
        self.fresh = None
        return self.drafted

    @property
    def agreement(self) -> float:
        """How often the target has agreed with a draft token, a half before it was asked."""
        return (self.agreed + 1) / (self.judged + 2)

    @property
    def room(self) -> int:
        """Tokens still to come at most."""
        return self.limit - len(self.tokens)

    def lose_draft(self, error: Exception) -> None:
        """Go on with the target alone."""
        message = f"{type(error).__name__}: {error}"
        _log.warning("the draft was lost, the target goes on alone: %s", message)
        self.stats.draft_losses.append(message)
        self.drafter = None

    def commit(self, verdict: Verdict, drafted: tuple[int, ...] | None) -> list[int]:
        """Append what the target decided; the next window carries `drafted`."""
        self.agreed += verdict.accepted
        self.judged += min(verdict.accepted + 1, len(self.drafted or ()))
        said = [*(self.drafted or ())[: verdict.accepted], verdict.correction][: self.room]
        ends = [index for index, token in enumerate(said) if token in self.eos]
        if ends:
            said, self.finish_reason = said[: ends[0] + 1], "stop"
        elif len(said) == self.room:
            self.finish_reason = "length"
        self.tokens += said
        self.untold += said
        # The last token's row is written by the next window, and so are those after it.
        self.on.cached += self.tokens[len(self.on.cached) : -1]
        self.drafted = None if drafted is None else drafted[: max(0, self.room - 1)]
        return said


class Rollout(NamedTuple):
    """A rollout under way."""

    branches: asyncio.Future[list[Branch]]
    roots: list[Root]
    """Its roots, once they are chosen."""
    dropped: Event

    def drop_unless(self, verdict: Verdict) -> None:
        """Have it end early if the outcome is none that it prepares for."""
        if self.roots and Root(*verdict) not in self.roots:
            self.dropped.set()


class Outcome(NamedTuple):
    """What a step decided, and what it left for the next."""

    verdict: Verdict
    drafted: tuple[int, ...] | None = None
    roots: int = 0
    hit: bool | None = None


async def ar_step(answer: Answer) -> Outcome:
    """The target alone: one token. The device has the next step before it ends this one."""
    answer.drafted = None
    while len(answer.ahead) < min(2, answer.room):
        answer.ahead.append(answer.alone())
    return Outcome(Verdict(0, await answer.ahead.popleft()))


async def sd_step(answer: Answer) -> Outcome:
    """Serial speculation: draft a window, then verify it."""
    await answer.window()
    prefix, suffix = answer.prefix(candidates=0), answer.suffix()
    await prefix
    verdict = answer.verify(await suffix)
    answer.draft_after(verdict)
    return Outcome(verdict)


async def mirror_step(answer: Answer) -> Outcome:
    """Mirror speculation: while the suffix decides, the draft prepares for every outcome."""
    await answer.window()
    prefix = answer.prefix(answer.strategy.pool(answer.sampler.sampling))
    rollout, suffix = answer.rollout(prefix), answer.suffix()
    await prefix
    verdict = answer.verify(await suffix)
    rollout.drop_unless(verdict)
    tree = HypothesisTree(await answer.branches(rollout.branches))
    branch = tree.lookup(*verdict)
    if branch is None:
        answer.draft_after(verdict)
    return Outcome(verdict, branch and branch.tokens, len(tree), branch is not None)


STEPS: dict[Mode, Callable[[Answer], Coroutine[Any, Any, Outcome]]] = {
    "ar": ar_step,
    "sd": sd_step,
    "mirror": mirror_step,
}


async def decode(answer: Answer) -> AsyncIterator[list[int]]:
    """Yield the answer's tokens, step by step, until `answer.finish_reason` is set.

    May be abandoned or cancelled at any await: a device ends the call it is in, and the next
    answer starts from the rows that are certain.
    """
    on, stats, mode = answer.on, answer.stats, answer.strategy.mode
    began = on.clock()
    warming = _warm_up(answer)
    first = await _prefill(answer)
    stats.time_to_first_token = on.clock() - began
    answer.draft_after(Verdict(0, first))
    said = answer.commit(Verdict(0, first), None)
    stats.generated_tokens += len(said)
    yield said
    if answer.finish_reason is not None:
        return
    began = on.clock()
    try:
        await warming
    except Exception as error:
        answer.lose_draft(error)
    stats.decode_seconds += on.clock() - began
    on.trace.take()
    while answer.finish_reason is None:
        began = on.clock()
        mode = mode if answer.drafter is not None else "ar"
        outcome = await STEPS[mode](answer)
        proposed = len(answer.drafted or ())
        said = answer.commit(outcome.verdict, outcome.drafted)
        stats.steps.append(
            StepRecord.of(
                on.trace.take(),
                (began, on.clock()),
                mode=mode,
                proposed=proposed,
                accepted=outcome.verdict.accepted,
                committed=len(said),
                roots=outcome.roots,
                hit=outcome.hit,
            )
        )
        stats.generated_tokens += len(said)
        stats.decode_seconds += on.clock() - began
        yield said


def _warm_up(answer: Answer) -> asyncio.Future[None]:
    """The draft reads the prompt too; nobody waits for it before the first token."""
    if answer.drafter is None:
        return _done(None)
    return answer.on.draft_lane.start("prefill", answer.drafter.prefill, list(answer.tokens))


async def _prefill(answer: Answer) -> int:
    """Feed the prompt to the target and sample the first token.

    Rows that the cache shares with the prompt are kept, but for the last: its logits are wanted.
    A strict answer keeps none, since rounding may depend on how its rows came to be.
    """
    on, prompt = answer.on, answer.tokens
    strict = answer.strategy.width > 0
    kept, most = 0, 0 if strict else min(len(on.cached), len(prompt) - 1)
    while kept < most and on.cached[kept] == prompt[kept]:
        kept += 1
    del on.cached[kept:]
    answer.stats.prompt_tokens = len(prompt)
    answer.stats.prefilled_tokens = len(prompt) - kept
    for start in range(kept, len(prompt), _PREFILL_CHUNK):
        chunk = prompt[start : start + _PREFILL_CHUNK]
        logits = await on.target_lane.start("prefill", on.target.prefill, chunk, start)
        on.cached += chunk
    histories = [prompt] if answer.sampler.needs_history else None
    return int(answer.sampler.choose(logits, [len(prompt)], histories)[0])


def _done(value: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future
