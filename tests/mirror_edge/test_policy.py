"""What the caller asks for, and what an answer then does."""

from __future__ import annotations

from typing import Any

import pytest

from mirror_edge.errors import OptionError
from mirror_edge.policy import STRICT_WIDTH, Speculation, Strategy, choices, resolve
from mirror_edge.sampling import Sampling


@pytest.mark.parametrize(
    ("asked", "can_draft", "mode"),
    [
        ("auto", True, "mirror"),
        ("auto", False, "ar"),
        ("ar", True, "ar"),
        ("ar", False, "ar"),
        ("sd", True, "sd"),
        ("mirror", True, "mirror"),
    ],
)
def test_the_mode_of_an_answer(asked: Any, can_draft: bool, mode: str) -> None:
    assert resolve(Speculation(mode=asked), can_draft=can_draft).mode == mode


@pytest.mark.parametrize("mode", ["sd", "mirror"])
def test_a_named_mode_without_a_draft_is_refused_with_the_reason(mode: Any) -> None:
    with pytest.raises(OptionError, match=f"^mode {mode} needs a draft, and this bundle has none"):
        resolve(Speculation(mode=mode), can_draft=False)


def test_the_rest_is_taken_over() -> None:
    asked = Speculation("mirror", window=5, candidates=3, branches="all")
    assert resolve(asked, can_draft=True) == Strategy("mirror", 5, 3, None, 0)


def test_strict_fixes_the_width() -> None:
    strict = Speculation(strict=True, window=STRICT_WIDTH - 1)
    for can_draft in (True, False):
        assert resolve(strict, can_draft=can_draft).width == STRICT_WIDTH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "^mode is 'fast'; it must be auto, ar, sd or mirror"),
        ({"drafter": "oracle"}, "^drafter is 'oracle'; it must be model or ngram"),
        ({"exit_head": "moon"}, "^exit_head is 'moon'; it must be target or draft"),
        ({"head_start": "late"}, "^head_start is 'late'; it must be True or False"),
        ({"strict": "yes"}, "^strict is 'yes'; it must be True or False"),
        ({"window": 0}, "^window is 0; it must be 1 or more"),
        ({"window": 2.0}, "^window is 2.0; it must be a whole number"),
        ({"window": "all"}, "^window is 'all'; it must be a whole number"),
        ({"candidates": -2}, "^candidates is -2; it must be 1 or more"),
        ({"branches": 0}, "^branches is 0; it must be 1 or more"),
        ({"strict": True, "window": STRICT_WIDTH}, "^window is 8; with strict it must be below 8"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Speculation(**options)


def test_without_strict_the_window_may_be_wide() -> None:
    assert resolve(Speculation(window=40), can_draft=True).window == 40


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("candidates", [1, 8, 63, 64, 200])
def test_the_exit_head_names_one_candidate_more_than_is_needed(
    candidates: int, temperature: float
) -> None:
    """One may be the draft's own token; with noise, many more are ranked anew."""
    strategy = Strategy("mirror", 4, candidates, None, 0)
    pool = strategy.pool(Sampling(temperature=temperature))
    assert pool >= candidates + 1
    assert pool == candidates + 1 or temperature > 0
    assert pool >= 64 or temperature == 0


def test_auto_may_choose_every_mode_and_keeps_what_was_fixed() -> None:
    free = choices(Speculation())
    assert {plan.mode for plan in free} == {"ar", "sd", "mirror"}
    assert len({plan.window for plan in free if plan.mode == "mirror"}) > 3
    fixed = choices(Speculation(window=2, candidates=3, branches="all", strict=True))
    assert {(p.window, p.candidates, p.branches) for p in fixed if p.mode == "mirror"} == {
        (2, 3, None)
    }
    assert {plan.width for plan in fixed} == {STRICT_WIDTH}
    assert {plan.exit_head for plan in free} == {"target"}
    assert all(plan.window < STRICT_WIDTH for plan in choices(Speculation(strict=True)))


def test_auto_may_choose_the_place_of_the_exit_head_where_there_are_two() -> None:
    free = choices(Speculation(), exit_heads=("target", "draft"))
    assert {p.exit_head for p in free if p.mode == "mirror"} == {"target", "draft"}
    assert len(set(free)) == len(free)
    for place in ("target", "draft"):
        fixed = choices(Speculation(exit_head=place), exit_heads=("target", "draft"))
        assert {p.exit_head for p in fixed if p.mode == "mirror"} == {place}


@pytest.mark.parametrize("apart", [False, True])
def test_a_draft_with_a_device_of_its_own_gets_a_head_start_unless_told_otherwise(
    apart: bool,
) -> None:
    for asked, expected in ((None, apart), (True, True), (False, False)):
        speculation = Speculation("mirror", head_start=asked)
        assert resolve(speculation, can_draft=True, apart=apart).head_start is expected
        every = choices(Speculation(head_start=asked), apart=apart)
        assert {p.head_start for p in every} == {expected}


def test_auto_may_look_windows_up_unless_a_drafter_was_named() -> None:
    looked_up = {plan.window for plan in choices(Speculation()) if plan.drafter == "ngram"}
    assert min(looked_up) == 1
    assert len(looked_up) > 2
    assert {p.window for p in choices(Speculation(window=3)) if p.drafter == "ngram"} == {3}
    for drafter in ("model", "ngram"):
        assert {plan.drafter for plan in choices(Speculation(drafter=drafter))} == {"model"}
    alone = choices(Speculation(), can_draft=False)
    assert {(p.mode, p.drafter) for p in alone} == {("ar", "model"), ("sd", "ngram")}
