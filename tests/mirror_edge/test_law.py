"""The law of the step over many plans at once, beside the law as it is written."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_edge.averages import Fading
from mirror_edge.costs import Costs, Curve
from mirror_edge.experience import Experience
from mirror_edge.law import StepLaw
from mirror_edge.policy import Mode, Speculation, Strategy, choices

TIMES = st.floats(1e-5, 1e-1)
FACTORS = st.floats(0.3, 3.0)
MODES: tuple[Mode, ...] = ("ar", "sd", "mirror")


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    rows = sorted(draw(st.sets(st.integers(1, 32), min_size=1, max_size=4)))
    return Curve(tuple(rows), tuple(sorted(draw(TIMES) for _ in rows)))


@st.composite
def costs(draw: st.DrawFn) -> Costs:
    four = [draw(curves()) for _ in range(4)]
    beside, fresh = draw(st.none() | curves()), draw(st.none() | curves())
    return Costs(*four, beside=draw(FACTORS), exit_beside=beside, fresh=fresh)


@st.composite
def experiences(draw: st.DrawFn) -> Experience:
    found = Experience()
    for mode in MODES:
        found.pace.slowed[mode].prior = draw(FACTORS)
        found.host[mode].prior = draw(TIMES)
    for typical in (found.pace.now, found.beside, found.rollout, *found.fresh.values()):
        typical.prior = draw(FACTORS)
    found.acceptance.lasting = Fading(draw(st.floats(0.05, 0.95)))
    return found


def seconds_a_token(plan: Strategy, costs: Costs, known: Experience) -> float:
    """Of one plan, term by term."""
    rows = 1 if plan.mode == "ar" else plan.window + 1
    pace = known.pace.now.value
    factor = pace * known.pace.slowed[plan.mode].value
    prefix, suffix = factor * costs.prefix(rows), factor * costs.suffix(rows)
    fresh = pace * known.fresh[plan.mode].value * costs.serial(plan.window)
    host = pace * known.host[plan.mode].value
    tokens = known.tokens(rows - 1)[-1]
    if plan.mode == "ar":
        return prefix + suffix + host
    if plan.mode == "sd":
        return (prefix + suffix + fresh + host) / tokens
    roots = plan.branches or (plan.window + 1) * plan.candidates
    suffix *= known.beside.value * costs.beside
    wide, alone = costs.draft(roots), costs.draft(1)
    together = min(plan.window, max(1, ceil(suffix / wide)))
    rollout = pace * known.rollout.value * (together * wide + (plan.window - together) * alone)
    if plan.exit_head == "draft":
        away = (costs.exit_beside or costs.exit)(rows)
        step = prefix + max(suffix, away + rollout)
    else:
        step = prefix + costs.exit(rows) + max(suffix, rollout)
    missed = 1.0 - known.hit_rates(np.array([roots]))[0]
    return (step + missed * fresh + host) / tokens


@given(costs(), experiences(), st.booleans())
def test_a_plan_takes_among_all_what_the_law_says_of_it_alone(
    costs: Costs, known: Experience, everything: bool
) -> None:
    plans = choices(Speculation(drafter="model"), exit_heads=("target", "draft"))
    if everything:
        plans += [replace(plan, branches=None) for plan in plans if plan.branches == 1]
    expected = [seconds_a_token(plan, costs, known) for plan in plans]
    assert StepLaw(costs, plans).seconds_a_token(known) == pytest.approx(expected)


def test_the_target_alone_needs_no_draft_to_be_weighed() -> None:
    flat = Curve((1,), (0.01,))
    (alone,) = StepLaw(
        Costs(flat, flat, flat, flat), choices(Speculation("ar"))[:1]
    ).seconds_a_token(Experience())
    assert alone == pytest.approx(0.0201)
