"""How fast a target is at the moment, told apart from what a mode does to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_edge.pace import Pace
from mirror_edge.policy import Mode

PACES = st.floats(0.5, 4.0)


def taken(*stays: tuple[Mode, float], steps: int = 30) -> Pace:
    """After so many steps in each mode, at the factor named."""
    pace = Pace()
    for mode, factor in stays:
        for _ in range(steps):
            pace.add(mode, factor)
    return pace


@given(PACES, st.floats(0.9, 1.9))
def test_how_much_a_draft_slows_its_target_is_learnt_from_changes_of_mode(
    machine: float, slower: float
) -> None:
    turns: list[tuple[Mode, float]] = [("ar", machine), ("mirror", machine * slower)] * 3
    pace = taken(*turns)
    assert pace.factor("mirror") == pytest.approx(machine * slower, rel=0.1)
    assert pace.factor("ar") == pytest.approx(machine, rel=0.1)


@given(PACES, PACES)
def test_a_machine_that_changes_within_a_mode_changes_all_modes(first: float, later: float) -> None:
    known = taken(("ar", first), ("sd", 1.2 * first))
    changed = taken(("ar", first), ("sd", 1.2 * first), ("sd", 1.2 * later))
    ratios = [changed.factor(mode) / known.factor(mode) for mode in ("ar", "sd", "mirror")]
    assert ratios == pytest.approx([later / first] * 3)


@given(PACES)
def test_a_burst_at_a_change_of_mode_counts_for_one_comparison(burst: float) -> None:
    quiet: list[tuple[Mode, float]] = [("ar", 1.0), ("sd", 1.1)] * 4
    pace = taken(*quiet, ("ar", burst), *quiet)
    assert pace.factor("ar") == pytest.approx(1.0, rel=0.1)
    assert pace.factor("sd") == pytest.approx(1.1, rel=0.1)


def test_a_mode_left_at_once_is_not_compared() -> None:
    pace = taken(("ar", 1.0), ("mirror", 3.0), ("ar", 1.0), steps=3)
    assert pace.slowed["mirror"].value == 1.0
