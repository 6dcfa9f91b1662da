"""The step loops on scripted devices: the text, the step law, losses and cancellation."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mirror_edge.answer import Answer, Decoder
from mirror_edge.decode import decode
from mirror_edge.driving import drive, drive_async
from mirror_edge.hypotheses import Branch, ExitSignal, Root
from mirror_edge.lanes import ThreadLane
from mirror_edge.ngram import Lookup, NgramDrafter
from mirror_edge.policy import ExitPlace, Mode, Speculation, Strategy, choices
from mirror_edge.protocols import Drafter, Lane
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.scripted import (
    Language,
    ScriptedDraft,
    ScriptedExitHead,
    ScriptedTarget,
    Seconds,
    blend,
    random_language,
)
from mirror_edge.runtimes.virtual import VirtualClock, VirtualLane
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.stats import StepRecord
from mirror_edge.trace import Trace

VOCABULARY = 24
TRUTH = random_language(1, VOCABULARY)
NEAR = blend(TRUTH, random_language(2, VOCABULARY), 0.3)
NOISE = random_language(3, VOCABULARY)
PROMPT = [3, 1, 4, 1, 5]
GREEDY = Sampling()


@dataclass
class House:
    """A decoder over scripted devices, with real or virtual lanes."""

    lane: Callable[[str, Trace], Lane]
    drafter: Drafter | None
    trace: Trace = field(default_factory=Trace)
    seconds: dict[str, float] = field(default_factory=dict)
    virtual: VirtualClock | None = None

    def answer(
        self,
        mode: Mode,
        *,
        window: int = 4,
        candidates: int = 4,
        branches: int | None = None,
        sampling: Sampling = GREEDY,
        new: int = 40,
        eos: frozenset[int] = frozenset(),
        clock: Callable[[], float] = time.perf_counter,
        exit_head: ExitPlace = "target",
        head_start: bool = False,
        language: Language = TRUTH,
    ) -> Answer:
        self.target = ScriptedTarget(
            language,
            NEAR,
            VOCABULARY,
            seconds=self.seconds,
            trace=self.trace,
            virtual=self.virtual,
        )
        decoder = Decoder(
            self.target,
            self.lane("target", self.trace),
            self.lane("draft", self.trace),
            self.trace,
            clock,
            exit_head=ScriptedExitHead(
                NEAR, self.seconds.get("draft exit", 0.0), self.trace, self.virtual
            ),
        )
        return Answer(
            on=decoder,
            tokens=list(PROMPT),
            plan=Strategy(mode, window, candidates, branches, 0, exit_head, head_start),
            sampler=Sampler(sampling, VOCABULARY),
            drafter=self.drafter,
            eos=eos,
            limit=len(PROMPT) + new,
        )


def spoken(answer: Answer) -> list[int]:
    return [token for said in drive(decode(answer)) for token in said.tokens]


def free_lane(name: str, trace: Trace) -> Lane:
    return VirtualLane(name, trace, VirtualClock(), lambda *_: 0.001)


def drafters() -> dict[str, Callable[[], Drafter]]:
    return {
        "near": lambda: ModelDrafter(ScriptedDraft(NEAR, VOCABULARY)),
        "noise": lambda: ModelDrafter(ScriptedDraft(NOISE, VOCABULARY)),
        "short": lambda: ModelDrafter(ScriptedDraft(NEAR, VOCABULARY, context=20, branch_rows=8)),
        "narrow": lambda: ModelDrafter(
            ScriptedDraft(lambda t: NEAR(t)[: VOCABULARY - 5], VOCABULARY - 5)
        ),
        "common": lambda: ModelDrafter(
            ScriptedDraft(lambda t: NEAR(t)[: VOCABULARY - 5], VOCABULARY, named=VOCABULARY - 5)
        ),
        "ngram": lambda: NgramDrafter(),
    }


@pytest.mark.parametrize("drafter", drafters())
@pytest.mark.parametrize("mode", ["sd", "mirror"])
@pytest.mark.parametrize("window", [1, 4, 7])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0, seed=5),
        Sampling(temperature=0.7, top_k=8, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=6),
    ],
    ids=["greedy", "t1", "all"],
)
def test_every_mode_says_what_the_target_alone_says(
    mode: Mode, drafter: str, window: int, sampling: Sampling
) -> None:
    alone = spoken(House(free_lane, None).answer("ar", sampling=sampling))
    assert len(alone) == 40
    for branches, early in ((None, False), (3, False), (3, True)):
        house = House(free_lane, drafters()[drafter]())
        answer = house.answer(
            mode,
            window=window,
            branches=branches,
            candidates=3,
            sampling=sampling,
            head_start=early,
        )
        assert spoken(answer) == alone
        assert not answer.stats.draft_losses


class Restless:
    """A controller that plans every step by the dice."""

    probing = True

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def plan(self, among: Sequence[Strategy]) -> Strategy:
        windows = tuple(self.dice.choice((0, 1, 5)) for _ in range(4))
        return replace(self.dice.choice(among), look_up=windows)

    def learn(self, step: StepRecord) -> None:
        pass


@pytest.mark.parametrize("drafter", drafters())
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_plan_may_change_at_every_step(drafter: str, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=2)
    alone = spoken(House(free_lane, None).answer("ar", new=80, sampling=sampling))
    asked = Speculation(drafter="model")
    every = [
        replace(plan, head_start=early)
        for plan in choices(asked, exit_heads=("target", "draft"))
        for early in (False, True)
    ]
    tried = set()
    for seed in range(4):
        # Each mode is as likely as the others.
        among = [p for mode in ("ar", "sd", "mirror") for p in every if p.mode == mode]
        answer = House(free_lane, drafters()[drafter]()).answer("ar", new=80, sampling=sampling)
        answer.controller, answer.choices = Restless(seed), [*among[:8] * 4, *among[8:]]
        answer.lookup = Lookup(4)
        assert spoken(answer) == alone
        assert not answer.stats.draft_losses
        tried |= {(step.mode, step.drafter) for step in answer.stats.steps}
    assert tried == {("ar", "model"), ("sd", "model"), ("mirror", "model"), ("sd", "ngram")}


class Copying:
    """A controller that looks up what it can, and else follows one plan."""

    probing = False

    def __init__(self, mode: Mode) -> None:
        self.plans = Strategy(mode, 4, 4, 8, 0, look_up=(0, 0, 7))

    def plan(self, among: Sequence[Strategy]) -> Strategy:
        del among
        return self.plans

    def learn(self, step: StepRecord) -> None:
        pass


@pytest.mark.parametrize("mode", ["ar", "sd", "mirror"])
def test_what_was_said_before_is_looked_up_and_the_draft_left_in_peace(mode: Mode) -> None:
    period = [*range(2, 20)]
    around = dict(pairwise([*period, period[0]]))

    def copying(tokens: Sequence[int]) -> NDArray[np.float32]:
        logits = np.zeros(VOCABULARY, np.float32)
        logits[around.get(tokens[-1], 2)] = 1.0
        return logits

    trace = Trace()
    house = House(free_lane, ModelDrafter(ScriptedDraft(NOISE, VOCABULARY, trace=trace)), trace)
    answer = house.answer(mode, new=100, language=copying)
    answer.controller, answer.choices, answer.lookup = Copying(mode), (answer.plan,), Lookup(3)
    said = spoken(answer)
    assert said == [around.get(before, 2) for before in [PROMPT[-1], *said[:-1]]]
    steps = answer.stats.steps
    copied = [step for step in steps if step.drafter == "ngram"]
    assert copied[3:] == steps[-len(copied) + 3 :]
    assert sum(step.committed for step in copied) > 70
    assert {step.committed for step in copied[:-1]} == {8}
    assert {step.foretold for step in copied[:-1]} == {(7, 7)}
    assert not any(step.busy.get("draft") for step in copied[3:])
    assert not any(step.reviewed is not None for step in copied[3:])


@pytest.mark.parametrize("mode", ["sd", "mirror"])
def test_a_wide_window_is_nothing_that_the_draft_has_missed(mode: Mode) -> None:
    """On one processor, where a serial draft is made by whoever waits for it."""
    trace = Trace()

    def lane(name: str, trace: Trace) -> Lane:
        return ThreadLane(name, trace, shared=True)

    house = House(lane, ModelDrafter(ScriptedDraft(TRUTH, VOCABULARY, trace=trace)), trace)
    kept = trace.keep()
    answer = house.answer(mode, window=24, new=150)
    spoken(answer)
    assert sum(step.accepted == 24 for step in answer.stats.steps) >= 4
    assert not answer.stats.draft_losses
    assert "review" not in {call.name for call in kept.calls}


class Turning:
    """A controller that takes its plans in turn."""

    probing = True

    def __init__(self, *plans: Strategy) -> None:
        self.plans, self.at = plans, 0

    def plan(self, among: Sequence[Strategy]) -> Strategy:
        del among
        self.at += 1
        return self.plans[self.at % len(self.plans)]

    def learn(self, step: StepRecord) -> None:
        pass


@pytest.mark.parametrize("shared", [False, True])
def test_a_draft_that_is_left_to_itself_hears_of_all_tokens(shared: bool) -> None:
    """Also where its call would have been made by whoever waits for it."""

    def lane(name: str, trace: Trace) -> Lane:
        return ThreadLane(name, trace, shared=shared and name == "draft")

    drafter = ModelDrafter(ScriptedDraft(TRUTH, VOCABULARY))
    answer = House(lane, drafter).answer("sd", new=120)
    alone = replace(answer.plan, mode="ar")
    answer.controller, answer.choices = Turning(answer.plan, answer.plan, alone), (answer.plan,)
    said = spoken(answer)
    heard = drafter._committed
    assert heard == [*PROMPT, *said][: len(heard)]
    assert len(heard) > 100
    steps = [step for step in answer.stats.steps[3:-3] if step.proposed]
    assert len(steps) > 10
    assert all(step.accepted == step.proposed for step in steps)
    answer.on.target_lane.close()
    answer.on.draft_lane.close()


def test_an_answer_that_follows_an_abandoned_one_is_drafted_from_its_own_prompt() -> None:
    drafter = ModelDrafter(ScriptedDraft(TRUTH, VOCABULARY, seconds=0.001))
    seconds = {"prefix": 0.004, "suffix": 0.004}
    answer = House(ThreadLane, drafter, seconds=seconds).answer("mirror", new=60)
    for _ in range(4):
        told = drive(decode(answer))
        next(told), next(told)
        told.close()
        answer = again(answer)
    spoken(answer)
    figures = answer.stats.as_dict()
    assert figures["acceptance_rate"] == 1.0
    answer.on.target_lane.close()


def test_a_near_draft_commits_several_tokens_a_step_and_hits() -> None:
    answer = House(free_lane, drafters()["near"]()).answer("mirror", new=200)
    spoken(answer)
    figures = answer.stats.as_dict()
    assert figures["tokens_per_step"] > 1.5
    assert figures["hit_rate"] > 0.8


def test_the_answer_ends_with_the_first_end_of_sequence_token() -> None:
    alone = spoken(House(free_lane, None).answer("ar", new=80))
    end = alone[30]
    answer = House(free_lane, drafters()["near"]()).answer("mirror", new=80, eos=frozenset({end}))
    assert spoken(answer) == alone[: alone.index(end) + 1]
    assert answer.finish_reason == "stop"


STEP = {"prefill": 0.5, "prefix": 0.010, "suffix": 0.030}


def timed(
    mode: Mode,
    rollout: float,
    more: Mapping[str, float] | None = None,
    exit_head: ExitPlace = "target",
) -> Answer:
    """An answer on the virtual clock, where a fresh draft takes 9 ms."""
    clock = VirtualClock()
    costs = {"rollout": rollout, "fresh": 0.009}

    def lane(name: str, trace: Trace) -> Lane:
        return VirtualLane(name, trace, clock, lambda call, *_: costs.get(call, 0.0))

    seconds = {**STEP, **(more or {})}
    house = House(lane, drafters()["near"](), seconds=seconds, virtual=clock)
    answer = house.answer(mode, branches=4, new=120, clock=clock, exit_head=exit_head)
    spoken(answer)
    return answer


@pytest.mark.parametrize("rollout", [0.002, 0.030, 0.050])
def test_a_mirror_step_takes_prefix_plus_the_longer_of_suffix_and_rollout(rollout: float) -> None:
    steps = timed("mirror", rollout).stats.steps[:-2]
    assert {step.hit for step in steps} == {True, False}
    for step, after in pairwise(steps):
        # From its window to the next step's: waiting for a draft belongs to the step that missed.
        expected = STEP["prefix"] + max(STEP["suffix"], rollout) + (0.0 if step.hit else 0.009)
        assert step.seconds - step.waited + after.waited == pytest.approx(expected, abs=1e-9)
        assert step.hidden == pytest.approx(min(STEP["suffix"], rollout), abs=1e-9)
        assert (after.waited > 0.0) == (not step.hit)


@pytest.mark.parametrize("rollout", [0.002, 0.022, 0.050])
def test_an_exit_head_on_the_drafts_device_keeps_the_suffix_waiting_for_nothing(
    rollout: float,
) -> None:
    head = 0.008
    steps = timed("mirror", rollout, {"exit": 1.0, "draft exit": head}, "draft").stats.steps[:-2]
    assert {step.hit for step in steps} == {True, False}
    for step, after in pairwise(steps):
        beside = max(STEP["suffix"], head + rollout)
        expected = STEP["prefix"] + beside + (0.0 if step.hit else 0.009)
        assert step.seconds - step.waited + after.waited == pytest.approx(expected, abs=1e-9)
        assert step.exit == pytest.approx(head, abs=1e-9)
        assert step.rollout == pytest.approx(rollout, abs=1e-9)


def test_an_exit_head_on_the_targets_device_comes_before_both() -> None:
    for step, after in pairwise(timed("mirror", 0.040, {"exit": 0.008}).stats.steps[:-2]):
        expected = STEP["prefix"] + 0.008 + 0.040 + (0.0 if step.hit else 0.009)
        assert step.seconds - step.waited + after.waited == pytest.approx(expected, abs=1e-9)


def test_both_exit_heads_foresee_the_same() -> None:
    found = []
    for place in ("target", "draft"):
        answer = House(free_lane, drafters()["near"]()).answer("mirror", exit_head=place)
        said = spoken(answer)
        found.append((said, [(step.rank, step.hit) for step in answer.stats.steps]))
    assert found[0] == found[1]


def begun_early(
    forward: Seconds, suffix: float, new: int, exit_head: ExitPlace = "target"
) -> Answer:
    """An answer on the virtual clock whose draft is never wrong and gets a head start of 30 ms."""
    clock, trace = VirtualClock(), Trace()
    draft = ScriptedDraft(TRUTH, VOCABULARY, seconds=forward, virtual=clock, trace=trace)
    house = House(
        lambda name, trace: VirtualLane(name, trace, clock, lambda *_: 0.0),
        ModelDrafter(draft),
        trace,
        {"prefix": 0.030, "suffix": suffix},
        clock,
    )
    return house.answer("mirror", new=new, clock=clock, exit_head=exit_head, head_start=True)


@pytest.mark.parametrize("exit_head", ["target", "draft"])
@pytest.mark.parametrize(
    ("forward", "left"),
    # Of the prefix's 30 ms, 27 are used: for the window's row and so many branch tokens.
    [(0.008, 4 - 2), (0.013, 4 - 1), (0.020, 4), (0.050, 4)],
)
def test_a_head_start_is_made_of_the_prefix_and_shortens_the_rollout(
    forward: float, left: int, exit_head: ExitPlace
) -> None:
    answer = begun_early(forward, 0.010, 120, exit_head)
    alone = spoken(House(free_lane, None).answer("ar", new=120))
    assert spoken(answer) == alone
    steps = [step for step in answer.stats.steps[2:-2] if step.hit]
    assert len(steps) > 10
    for step in steps:
        # The draft is never wrong here, so the outcome is the branch that was begun.
        assert step.rollout == pytest.approx(left * forward, abs=1e-9)
        assert step.seconds == pytest.approx(0.030 + max(0.010, left * forward), abs=1e-9)


def test_a_head_start_that_takes_too_long_is_ended_and_made_shorter() -> None:
    fast = iter([0.001] * 12)
    answer = begun_early(lambda _: next(fast, 0.020), 0.100, 80)
    kept = answer.on.trace.keep()
    spoken(answer)
    early = [call for call in kept.calls if call.name == "head start"]
    assert max(call.end - call.start for call in early) <= 0.050 + 1e-9
    assert all(call.end - call.start <= 0.027 for call in early[-5:])


def test_losing_the_draft_in_its_head_start_costs_speed_never_text() -> None:
    alone = spoken(House(free_lane, None).answer("ar"))

    class Broken(ModelDrafter):
        def rollout(
            self,
            committed: Sequence[int],
            drafted: Sequence[int],
            roots: Sequence[Root],
            *rest: Any,
        ) -> list[Branch]:
            if not roots:
                raise RuntimeError("the driver went away")
            return super().rollout(committed, drafted, roots, *rest)

    drafter = Broken(ScriptedDraft(NEAR, VOCABULARY))
    answer = House(free_lane, drafter).answer("mirror", head_start=True)
    assert spoken(answer) == alone
    assert list(answer.stats.draft_losses) == ["RuntimeError: the driver went away"]


def test_losing_the_exit_head_costs_speed_never_text() -> None:
    alone = spoken(House(free_lane, None).answer("ar"))
    answer = House(free_lane, drafters()["near"]()).answer("mirror", exit_head="draft")

    class Broken(ScriptedExitHead):
        def signal(self, *_: object) -> ExitSignal:
            raise RuntimeError("the driver went away")

    answer.on.exit_head = Broken(NEAR)
    assert spoken(answer) == alone
    assert list(answer.stats.draft_losses) == ["RuntimeError: the driver went away"]


def test_a_serial_step_takes_draft_plus_target() -> None:
    for step in timed("sd", 1.0).stats.steps[:-2]:
        assert step.seconds == pytest.approx(STEP["prefix"] + STEP["suffix"] + 0.009, abs=1e-9)


def test_real_threads_keep_the_step_law_within_two_milliseconds() -> None:
    trace = Trace()
    draft = ScriptedDraft(NEAR, VOCABULARY, seconds=0.004, trace=trace)
    house = House(
        ThreadLane,
        ModelDrafter(draft),
        trace,
        {"prefix": 0.006, "suffix": 0.020},
    )
    answer = house.answer("mirror", window=3, new=120)
    spoken(answer)
    hits = [now for before, now in pairwise(answer.stats.steps) if before.hit]
    median = statistics.median(step.seconds for step in hits)
    law = statistics.median(s.prefix + max(s.suffix, s.rollout) for s in hits)
    assert median == pytest.approx(0.026, abs=0.002)
    assert median == pytest.approx(law, abs=0.002)
    answer.on.target_lane.close()


def test_a_rollout_that_missed_is_not_waited_for() -> None:
    trace = Trace()
    draft = ScriptedDraft(NEAR, VOCABULARY, seconds=0.005, trace=trace)
    house = House(ThreadLane, ModelDrafter(draft), trace, {"prefix": 0.001, "suffix": 0.003})
    answer = house.answer("mirror", window=6, branches=2, new=100)
    said = spoken(answer)
    assert said == spoken(House(free_lane, None).answer("ar", new=100))
    hits = [step.rollout for step in answer.stats.steps[:-4] if step.hit]
    misses = [step.rollout for step in answer.stats.steps[:-4] if not step.hit]
    assert statistics.median(hits) >= 0.030
    assert statistics.median(misses) < 0.67 * statistics.median(hits)
    answer.on.target_lane.close()


class Failing(ModelDrafter):
    """Breaks at its n-th rollout."""

    def __init__(self, calls: int) -> None:
        super().__init__(ScriptedDraft(NEAR, VOCABULARY))
        self.calls = calls

    def rollout(self, *args: Any, **kwargs: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("the driver went away")
        return super().rollout(*args, **kwargs)


@pytest.mark.parametrize("mode", ["sd", "mirror"])
@pytest.mark.parametrize("calls", [0, 1, 2, 7])
def test_losing_the_draft_costs_speed_never_text(mode: Mode, calls: int) -> None:
    alone = spoken(House(free_lane, None).answer("ar"))
    answer = House(free_lane, Failing(calls)).answer(mode)
    assert spoken(answer) == alone
    assert list(answer.stats.draft_losses) == ["RuntimeError: the driver went away"]


def test_cancelling_anywhere_leaves_the_devices_usable() -> None:
    alone = spoken(House(free_lane, None).answer("ar", new=25))
    house = House(ThreadLane, drafters()["near"](), seconds={"prefix": 0.002, "suffix": 0.004})
    answer = house.answer("mirror", new=25)

    async def reader() -> None:
        async for _ in drive_async(decode(again(answer))):
            pass

    async def cancelled_after(seconds: float) -> None:
        task = asyncio.create_task(reader())
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for moment in range(12):
        asyncio.run(cancelled_after(0.0013 * moment))
        assert spoken(again(answer)) == alone
    answer.on.target_lane.close()


def again(answer: Answer) -> Answer:
    """The same question on the same devices."""
    return Answer(
        answer.on,
        list(PROMPT),
        answer.plan,
        answer.sampler,
        answer.draft.drafter,
        answer.eos,
        answer.limit,
    )


def test_a_second_turn_prefills_only_what_is_new() -> None:
    answer = House(free_lane, drafters()["near"]()).answer("mirror", new=20)
    spoken(answer)
    second = again(answer)
    second.tokens = [*answer.tokens, 7, 8, 9]
    second.limit = len(second.tokens) + 10
    spoken(second)
    # The last token of an answer is never fed, so it is new as well.
    assert second.stats.prefilled_tokens == 4


def test_the_thread_lane_keeps_order_and_a_cancelled_call_is_left_out() -> None:
    lane = ThreadLane("test", Trace())
    said: list[int] = []
    slow = lane.start("slow", lambda: (time.sleep(0.05), said.append(1)))
    never = lane.start("never", lambda: said.append(2))
    assert never.cancel()
    lane.start("quick", lambda: said.append(3)).result()
    assert said == [1, 3]
    assert slow.done()
    lane.close()
