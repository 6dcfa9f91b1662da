"""The step loops: how target and draft take turns, or run side by side.

A step feeds the window (the last committed token and the drafted ones) to the target, commits what
the target chooses, and leaves a draft for the next window. `ar`, `sd` and `mirror` differ only in
when the draft works: never, after the target, or while the target's suffix runs (Mirror-SD, arXiv
2510.13161, section 3.1).

Steps run on the target's lane and start work on the draft's lane, so that nothing but the devices
stands between one forward and the next. The reader of the answer queues steps, one ahead of the
step it waits for, and hands out their tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

from mirror_edge.answer import Answer, FinishReason
from mirror_edge.drafting import Rollout
from mirror_edge.driving import Parts, waited
from mirror_edge.hypotheses import Branch
from mirror_edge.ngram import foretold
from mirror_edge.policy import Mode
from mirror_edge.sampling import FORESIGHT
from mirror_edge.stats import DraftRecord, StepRecord
from mirror_edge.verify import Verdict

__all__ = ["Said", "decode"]

_AHEAD = 2
"""Steps that are queued or under way at once."""
_STUDY = 0.01
"""Seconds between two evaluations of past steps, each with a new plan: several steps at once cost
less, and the lanes' own Python stays in the processor's caches."""


class Outcome(NamedTuple):
    """What a step decided, and the branch it prepared for the next."""

    verdict: Verdict
    branch: Branch | None = None
    rollout: Rollout | None = None


class Said(NamedTuple):
    """The tokens of one step."""

    tokens: list[int]
    finish_reason: FinishReason | None


class Step(NamedTuple):
    """A step's tokens, its record, and the state of the draft."""

    said: Said
    record: Callable[[], StepRecord]
    """Computed by the reader, off the lane."""
    draft: DraftRecord


def ar_step(answer: Answer) -> Outcome:
    """The target alone: one token."""
    answer.without_draft()
    answer.prefix(candidates=0)
    return Outcome(answer.suffix())


def sd_step(answer: Answer) -> Outcome:
    """Serial speculation: draft a window, then verify it."""
    answer.await_draft()
    answer.prefix(candidates=0)
    verdict = answer.suffix()
    answer.draft_after(verdict)
    return Outcome(verdict)


def mirror_step(answer: Answer) -> Outcome:
    """Mirror speculation: while the suffix decides, the draft prepares for every outcome.

    The branch-complete rollout and its reuse of arXiv 2510.13161, section 3.1.
    """
    answer.await_draft()
    answer.head_start()
    rollout = answer.rollout(answer.foreseen())
    verdict = answer.suffix()
    branch = rollout.after(verdict)
    if branch is None:
        answer.draft_after(verdict)
    return Outcome(verdict, branch, rollout)


STEPS: dict[Mode, Callable[[Answer], Outcome]] = {
    "ar": ar_step,
    "sd": sd_step,
    "mirror": mirror_step,
}


def decode(answer: Answer) -> Parts[Said]:
    """The answer's tokens, step by step, up to its end.

    It may be abandoned or cancelled at any part: the lane finishes its current step, and the next
    answer starts from the rows that are certain.
    """
    on, lane, stats = answer.on, answer.on.target_lane, answer.stats
    began = on.clock()
    if answer.controller is not None:
        answer.planned = answer.controller.plan(answer.choices)
    kept = yield from waited(lane.start("prefill", answer.reuse))
    # Queued after what an abandoned answer's last step may still have asked of the draft.
    if answer.planned is not None and answer.planned.mode != "ar":
        answer.draft.read(answer.tokens)
    stats.placed = on.trace.placed
    stats.prompt_tokens = len(answer.tokens)
    stats.prefilled_tokens = len(answer.tokens) - kept
    known, answer.lookup = answer.lookup, None
    reading, place = lane.start("prefill", prefill, answer), len(answer.tokens)
    answer.sampler.prepare(place, place + FORESIGHT)
    if known is not None:
        known.learn(answer.tokens[:place])
    while (said := (yield from waited(reading))) is None:
        reading = lane.start("prefill", prefill, answer)
    answer.lookup = known
    stats.time_to_first_token = on.clock() - began
    stats.generated_tokens += len(said.tokens)
    yield said
    steps: deque[Future[Step | None]] = deque()
    records: list[Callable[[], StepRecord]] = []
    studied = on.clock()
    try:
        while said.finish_reason is None:
            while len(steps) < _AHEAD:
                steps.append(lane.start("step", step, answer, on.clock()))
            taken = yield from waited(steps.popleft())
            assert taken is not None
            said, record, draft = taken
            stats.draft_losses, stats.draft_restarts, stats.draft_lapses = draft
            place = len(answer.tokens)
            answer.sampler.prepare(place, place + FORESIGHT)
            records.append(record)
            controller = answer.controller
            due = said.finish_reason is not None or on.clock() - studied >= _STUDY
            if due or (controller is not None and controller.probing):
                study(answer, records)
                studied = on.clock()
                if controller is not None:
                    answer.planned = controller.plan(answer.choices)
            stats.generated_tokens += len(said.tokens)
            yield said
    finally:
        for queued in steps:
            queued.cancel()
        study(answer, records)


def study(answer: Answer, records: list[Callable[[], StepRecord]]) -> None:
    """Complete the records of the last steps, and have the controller learn from them."""
    for record in records:
        taken = record()
        answer.stats.steps.append(taken)
        answer.stats.decode_seconds += taken.seconds
        if answer.controller is not None:
            answer.controller.learn(taken)
    records.clear()


def prefill(answer: Answer) -> Said | None:
    """Feed a chunk of the prompt; after the last one, the first token."""
    token = answer.prefill()
    if token is None:
        return None
    first = Verdict(0, token)
    answer.next_plan()
    answer.catch_up()
    answer.draft_after(first)
    said = Said(answer.commit(first, None), answer.finish_reason)
    answer.on.trace.take()
    return said


def step(answer: Answer, asked: float) -> Step | None:
    """Take the step that the reader asked for at `asked`; None once the answer has ended."""
    if answer.finish_reason is not None:
        return None
    on, began = answer.on, max(asked, answer.until)
    answer.next_plan()
    answer.look_up()
    answer.catch_up()
    outcome = STEPS[answer.plan.mode](answer)
    (verdict, branch, rollout), proposed = outcome, len(answer.drafted)
    said = Said(answer.commit(verdict, branch), answer.finish_reason)
    answer.until = on.clock()
    decided = partial(
        StepRecord,
        mode=answer.plan.mode,
        waited=answer.waited,
        proposed=proposed,
        accepted=verdict.accepted,
        committed=len(said.tokens),
        depth=answer.depth,
        roots=len(rollout.roots) if rollout else 0,
        rank=rollout.rank(verdict) if rollout else None,
        hit=branch is not None if rollout else None,
        drafter=answer.plan.drafter,
        match=answer.match.length,
        foretold=foretold(answer.match.tokens, said.tokens),
        reviewed=answer.draft.reviewed,
    )
    record = partial(StepRecord.of, on.trace.take(), (began, answer.until), decided)
    return Step(said, record, answer.draft.record)
