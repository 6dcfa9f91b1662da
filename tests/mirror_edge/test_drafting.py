"""A drafter that is late, gets lost and comes back: the text stays, and the target goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_edge.answer import Answer, Decoder
from mirror_edge.decode import decode
from mirror_edge.drafting import Drafting
from mirror_edge.driving import drive
from mirror_edge.hypotheses import Branch, Root
from mirror_edge.lanes import Dropped, ThreadLane
from mirror_edge.policy import Mode, Strategy
from mirror_edge.protocols import Drafter
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.scripted import ScriptedDraft, ScriptedTarget, blend, random_language
from mirror_edge.runtimes.virtual import VirtualClock, VirtualLane
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.trace import Trace

VOCABULARY = 24
TRUTH = random_language(1, VOCABULARY)
NEAR = blend(TRUTH, random_language(2, VOCABULARY), 0.3)
PROMPT = [3, 1, 4, 1, 5]
GREEDY = Sampler(Sampling(), VOCABULARY)
LATER = [Branch(Root(0, 1), (2, 3))]


class Mortal(ModelDrafter):
    """Dies at some of its calls; is back once it has been asked for so often."""

    def __init__(self, deaths: Sequence[int], away: int) -> None:
        super().__init__(ScriptedDraft(NEAR, VOCABULARY))
        self._deaths, self._away = set(deaths), away
        self._calls = self._missing = 0
        self._knows = False

    @property
    def ready(self) -> bool:
        self._missing = max(0, self._missing - 1)
        return self._missing == 0

    def prefill(self, tokens: Sequence[int]) -> None:
        self._live()
        super().__init__(ScriptedDraft(NEAR, VOCABULARY))
        super().prefill(tokens)
        self._knows = True

    def review(self, *args: Any, **kwargs: Any) -> list[bool]:
        self._live()
        super().__init__(ScriptedDraft(NEAR, VOCABULARY))
        right = super().review(*args, **kwargs)
        self._knows = True
        return right

    def rollout(self, *args: Any, **kwargs: Any) -> Any:
        self._live()
        if not self._knows:
            raise RuntimeError("it died")
        return super().rollout(*args, **kwargs)

    def _live(self) -> None:
        self._calls += 1
        if self._calls in self._deaths:
            self._knows, self._missing = False, self._away
            raise RuntimeError("it died")


def answer_of(drafter: Drafter | None, mode: Mode, new: int = 60) -> Answer:
    trace, clock = Trace(), VirtualClock()
    lanes = [VirtualLane(name, trace, clock, lambda *_: 0.001) for name in ("target", "draft")]
    target = ScriptedTarget(TRUTH, NEAR, VOCABULARY)
    return Answer(
        Decoder(target, *lanes, trace),
        list(PROMPT),
        Strategy(mode, 3, 4, None, 0),
        Sampler(Sampling(0.7, seed=2), VOCABULARY),
        drafter,
        frozenset(),
        len(PROMPT) + new,
    )


def spoken(answer: Answer) -> list[int]:
    return [token for said in drive(decode(answer)) for token in said.tokens]


ALONE = spoken(answer_of(None, "ar"))


@given(
    st.sampled_from(["sd", "mirror"]),
    st.sets(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 12),
)
@settings(deadline=None, max_examples=60)
def test_a_draft_that_dies_anywhere_changes_no_text(
    mode: Mode, deaths: set[int], away: int
) -> None:
    drafter = Mortal(sorted(deaths), away)
    answer = answer_of(drafter, mode)
    assert spoken(answer) == ALONE
    stats = answer.stats
    assert set(stats.draft_losses) <= {"RuntimeError: it died"}
    assert len(stats.draft_losses) - stats.draft_restarts in (0, 1)
    asked = drafter._calls
    assert len(stats.draft_losses) <= len([death for death in deaths if death <= asked])
    modes = [step.mode for step in stats.steps]
    assert stats.draft_losses or "ar" not in modes


@pytest.mark.parametrize("mode", ["sd", "mirror"])
def test_a_draft_that_is_back_drafts_again(mode: Mode) -> None:
    answer = answer_of(Mortal([6], away=3), mode)
    assert spoken(answer) == ALONE
    modes = [step.mode for step in answer.stats.steps]
    first, last = modes.index("ar"), len(modes) - modes[::-1].index("ar") - 1
    assert 0 < first <= last < len(modes) - 3
    assert set(modes[first : last + 1]) == {"ar"}
    assert sum(step.accepted for step in answer.stats.steps[last + 1 :]) > 0


def test_an_answer_may_begin_before_the_draft_is_back() -> None:
    drafter = Mortal([], away=0)
    drafter._missing = 8
    answer = answer_of(drafter, "mirror")
    assert spoken(answer) == ALONE
    assert not answer.stats.draft_losses
    assert answer.stats.draft_restarts == 1
    assert [step.mode for step in answer.stats.steps[:3]] == ["ar"] * 3
    assert answer.stats.steps[-1].mode == "mirror"


class ByHand:
    """A lane whose calls end when the test says so."""

    name = "draft"

    def __init__(self) -> None:
        self.calls: list[Future[Any]] = []

    def start(self, *_: Any) -> Future[Any]:
        self.calls.append(Future())
        return self.calls[-1]

    def close(self) -> None:
        pass


def drafting(drafter: Drafter) -> tuple[Drafting, ByHand]:
    lane = ByHand()
    return Drafting(drafter, lane), lane


def test_a_late_draft_is_waited_for_no_longer_than_patience_and_asked_again_once_done() -> None:
    draft, lane = drafting(Mortal([], 0))
    draft.read(PROMPT)
    made: Future[list[Branch]] = Future()
    began = time.monotonic()
    assert draft.take(made, 0.05) == []
    assert 0.04 < time.monotonic() - began < 1.0
    assert draft.drafter is None
    assert draft.record == ((), 0, 1)
    lane.calls[0].set_result(None)
    draft.settle()
    assert draft.drafter is None
    made.set_result(LATER)
    draft.settle()
    assert draft.drafter is not None
    ready: Future[list[Branch]] = Future()
    ready.set_result(LATER)
    assert draft.take(ready, 0.0) == LATER
    assert draft.record == ((), 0, 1)


def test_what_a_draft_reads_first_is_a_part_of_the_patience_with_it() -> None:
    draft, lane = drafting(Mortal([], 0))
    draft.read(PROMPT)
    threading.Timer(0.4, lambda: lane.calls[0].set_result(None)).start()
    began = time.monotonic()
    assert draft.take(Future(), 0.5) == []
    assert time.monotonic() - began < 0.8


@pytest.mark.parametrize("begun", [False, True])
def test_a_draft_that_has_missed_much_reads_while_the_target_goes_on(begun: bool) -> None:
    draft, lane = drafting(Mortal([], 0))
    if begun:
        draft.read(PROMPT)
        lane.calls[0].set_result(None)
        assert not draft.catch_up(PROMPT, 15, GREEDY)
    assert draft.catch_up(PROMPT, 16 if begun else 1, GREEDY)
    assert not draft.catch_up(PROMPT, 16, GREEDY)
    draft.settle()
    assert draft.drafter is None
    assert draft.reviewed == ()
    lane.calls[-1].set_result([True, False])
    draft.settle()
    assert draft.drafter is not None
    assert draft.reviewed == (True, False)
    draft.settle()
    assert draft.reviewed is None
    assert not draft.record.lapses
    assert len(lane.calls) == 1 + begun


def test_a_draft_that_is_lost_while_it_reads_has_nothing_to_say_of_it() -> None:
    draft, lane = drafting(Mortal([], 0))
    assert draft.catch_up(PROMPT, 20, GREEDY)
    lane.calls[0].set_exception(RuntimeError("gone"))
    draft.settle()
    assert draft.drafter is None
    assert draft.reviewed == ()
    draft.settle()
    assert draft.reviewed is None
    assert draft.record.losses == ("RuntimeError: gone",)


def test_a_draft_that_has_read_the_prompt_has_nothing_to_catch_up_with() -> None:
    draft, _ = drafting(Mortal([], 0))
    draft.read(PROMPT)
    assert not draft.catch_up(PROMPT, 0, GREEDY)


@pytest.mark.parametrize("error", [RuntimeError("gone"), TimeoutError("gone")])
def test_a_late_draft_that_fails_after_all_is_one_loss(error: Exception) -> None:
    drafter = Mortal([], 0)
    draft, lane = drafting(drafter)
    made: Future[list[Branch]] = Future()
    draft.take(made, 0.0)
    made.set_exception(error)
    draft.settle()
    assert draft.drafter is None
    assert draft.record == ((f"{type(error).__name__}: gone",), 0, 1)
    assert draft.returned(PROMPT)
    assert draft.drafter is None, "it reads first, and nobody waits for that"
    lane.calls[-1].set_result(None)
    draft.settle()
    assert draft.drafter is drafter
    assert draft.record.restarts == 1


def test_the_target_goes_on_beside_a_draft_that_hangs() -> None:
    trace, hangs = Trace(), threading.Event()

    class Hanging(ModelDrafter):
        def rollout(self, *args: Any, **kwargs: Any) -> list[Branch]:
            if len(answer.tokens) > 30 and not hangs.is_set():
                hangs.wait(20)
            return super().rollout(*args, **kwargs)

    lanes = [ThreadLane(name, trace) for name in ("target", "draft")]
    answer = answer_of(Hanging(ScriptedDraft(NEAR, VOCABULARY)), "mirror")
    answer.on = Decoder(answer.on.target, *lanes, trace)
    answer.__post_init__(answer.draft.drafter)
    try:
        began = time.monotonic()
        assert spoken(answer) == ALONE
        assert time.monotonic() - began < 5.0
        assert not answer.stats.draft_losses
        assert answer.stats.draft_lapses == 1
    finally:
        hangs.set()
        for lane in lanes:
            lane.close()


def test_who_drops_is_heard_before_and_after() -> None:
    dropped, heard = Dropped(), []
    dropped.tell(lambda: heard.append("first"))
    assert not heard
    dropped.set()
    assert dropped.is_set()
    dropped.tell(lambda: heard.append("second"))
    assert heard == ["first", "second"]


def test_who_wants_only_a_part_is_heard_before_and_after() -> None:
    dropped, heard = Dropped(), []
    dropped.tell(lambda: heard.append(dropped.all_but))
    dropped.drop_all_but(Root(1, 7))
    assert not dropped.is_set()
    dropped.tell(lambda: heard.append(dropped.all_but))
    assert heard == [Root(1, 7), Root(1, 7)]
