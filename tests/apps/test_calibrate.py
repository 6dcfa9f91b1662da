"""Costs out of steps: a simulated machine's own steps give back its profile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_edge.apps.calibrate import host, in_use, typical
from mirror_edge.costs import Costs, Curve
from mirror_edge.policy import Mode, Strategy
from mirror_edge.runtimes.profile import Profile, StatedText
from mirror_edge.runtimes.scripts import StatedScript
from mirror_edge.runtimes.simulated import simulate
from mirror_edge.stats import StepRecord

MODES: tuple[Mode, ...] = ("ar", "sd", "mirror")
COSTS = Costs(
    prefix=Curve((1, 8), (0.004, 0.009)),
    exit=Curve((1, 8), (0.001, 0.002)),
    suffix=Curve((1, 8), (0.006, 0.015)),
    draft=Curve((1,), (0.002,)),
)
PROFILE = Profile(
    name="made up",
    costs=COSTS,
    branch_rows=4096,
    stream_share=0.0,
    hand_over=0.00003,
    host=0.0004,
    text=StatedText(0.8, (0.5, 0.8)),
    window=3,
    candidates=4,
    branches=None,
    sources=(),
)


@pytest.fixture(scope="module")
def steps() -> list[StepRecord]:
    script = StatedScript(0.8, (0.5, 0.6, 0.7, 0.8))
    plans = [Strategy(mode, 3, 4, None, 0) for mode in MODES]
    return [s for plan in plans for s in simulate(PROFILE, script, plan, new_tokens=200).steps]


def scaled(costs: Costs, factor: float) -> Costs:
    def curve(of: Curve) -> Curve:
        return Curve(of.rows, tuple(factor * time for time in of.seconds))

    return Costs(curve(costs.prefix), curve(costs.exit), curve(costs.suffix), curve(costs.draft))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_what_was_measured_too_fast_or_slow_is_put_right(
    steps: list[StepRecord], factor: float
) -> None:
    found = in_use(scaled(COSTS, factor), steps)
    for name in ("prefix", "exit", "suffix", "draft"):
        wanted: Curve = getattr(COSTS, name)
        assert getattr(found, name).seconds == pytest.approx(wanted.seconds, rel=0.02), name
    assert found.beside == pytest.approx(1.0)


@pytest.mark.parametrize("mode", MODES)
def test_the_host_is_what_the_devices_leave(steps: list[StepRecord], mode: Mode) -> None:
    assert host(steps, mode, PROFILE.hand_over) == pytest.approx(PROFILE.host, abs=1e-4)


def test_without_steps_the_costs_stand() -> None:
    assert in_use(COSTS, []) == COSTS
    assert host([], "sd", 0.0) == 0.0


@given(st.floats(0.01, 100.0), st.permutations([0, 1, 2]))
def test_one_disturbed_measurement_of_three_changes_little(wild: float, order: list[int]) -> None:
    runs = [scaled(COSTS, factor) for factor in (1.0, 1.1, wild)]
    found = typical([runs[index] for index in order])
    for name in ("prefix", "exit", "suffix", "draft"):
        true: Curve = getattr(COSTS, name)
        for seconds, time in zip(getattr(found, name).seconds, true.seconds, strict=True):
            assert time * 0.999 <= seconds <= time * 1.101
