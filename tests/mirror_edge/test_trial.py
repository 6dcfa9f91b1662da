"""A mode that is tried: when it ends, what it has cost, and whether it was worth it."""

from __future__ import annotations

import pytest

from mirror_edge.policy import Mode, Strategy
from mirror_edge.stats import StepRecord
from mirror_edge.trial import Trial

PACE = 0.01


def trial(mode: Mode) -> Trial:
    return Trial.of(Strategy(mode, 2, 4, 8, 0))


def step(mode: Mode, cost: float, **more: object) -> StepRecord:
    """Of two tokens, which costs so many more."""
    known: dict[str, object] = {
        "mode": mode, "proposed": 0 if mode == "ar" else 2, "accepted": 1, "committed": 2,
        "depth": 0, "roots": 0, "rank": None, "hit": None, "began": 0.0,
        "seconds": PACE * (2 + cost), "waited": 0.0, "prefix": 0.0, "exit": 0.0, "suffix": 0.0,
        "rollout": 0.0, "hidden": 0.0, "fresh": 0.0, "host": 0.0, "busy": {}, "sent": 0, "read": 0,
    }  # fmt: skip
    return StepRecord(**(known | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["ar", "sd", "mirror"])
def test_it_ends_after_some_steps_that_cost_nothing(mode: Mode) -> None:
    tried, steps = trial(mode), 0
    while tried.left:
        assert tried.next().mode == mode
        assert tried.learn(step(mode, 0.0), PACE)
        steps += 1
    assert steps == (5 if mode == "ar" else 13)
    assert not tried.gained
    assert tried.owed == 0


def test_windows_that_have_lost_a_token_are_enough() -> None:
    tried = trial("sd")
    for _ in range(4):
        tried.next()
        tried.learn(step("sd", 0.3), PACE)
    assert tried.left == 0
    assert tried.owed == pytest.approx(1.2 / 0.005, abs=1)


def test_while_the_draft_reads_no_step_counts_but_all_are_paid_for() -> None:
    tried = trial("sd")
    tried.next()
    left = tried.left
    for _ in range(30):
        assert tried.learn(step("ar", 0.5, reviewed=()), PACE)
        tried.next()
    assert tried.left == left
    assert tried.owed == pytest.approx(15 / 0.005, abs=1)
    tried.learn(step("sd", 0.0, proposed=0, reviewed=(True, False)), PACE)
    assert tried.reviewed
    tried.next()
    assert tried.left == left - 1


def test_it_has_gained_by_its_windows_and_not_by_a_lucky_target() -> None:
    tried = trial("mirror")
    for _ in range(5):
        tried.learn(step("ar", -0.5, reviewed=()), PACE)
    assert not tried.gained
    for _ in range(5):
        tried.learn(step("mirror", -0.5), PACE)
    assert tried.gained


@pytest.mark.parametrize("other", ["ar", "mirror"])
def test_steps_of_another_mode_are_none_of_its_own(other: Mode) -> None:
    tried = trial("sd")
    assert not tried.learn(step(other, 9.0), PACE)
    assert not tried.learn(step("sd", 9.0, drafter="ngram"), PACE)
    assert (tried.cost, tried.lost, tried.tokens) == (0.0, 0.0, 0)
