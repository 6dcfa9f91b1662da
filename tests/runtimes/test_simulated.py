"""The simulator: exact times, stated probabilities, and determinism."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mirror_edge.costs import Costs, Curve
from mirror_edge.policy import Mode, Strategy
from mirror_edge.runtimes.profile import Profile, Source, StatedText
from mirror_edge.runtimes.scripts import StatedScript
from mirror_edge.runtimes.simulated import simulate
from mirror_edge.stats import Stats
from mirror_edge.trace import Trace

COSTS = Costs(
    prefix=Curve((1, 17), (0.010, 0.012)),
    exit=Curve((1,), (0.001,)),
    suffix=Curve((1,), (0.010,)),
    draft=Curve((1,), (0.002,)),
)
PROFILE = Profile(
    name="made up",
    costs=COSTS,
    branch_rows=4096,
    stream_share=0.0,
    hand_over=0.0005,
    host=0.0002,
    text=StatedText(0.8, (0.5, 0.6, 0.7, 0.8)),
    window=4,
    candidates=4,
    branches=None,
    sources=(Source(("target.prefix",), "estimated", "made up", None),),
)
SCRIPT = StatedScript(0.8, (0.5, 0.6, 0.7, 0.8))


def run(
    mode: Mode = "mirror",
    window: int = 4,
    candidates: int = 4,
    branches: int | None = None,
    profile: Profile = PROFILE,
    script: StatedScript = SCRIPT,
    new_tokens: int = 300,
    width: int = 0,
) -> Stats:
    strategy = Strategy(mode, window, candidates, branches, width)
    return simulate(profile, script, strategy, new_tokens=new_tokens)


def test_the_target_alone_takes_prefix_suffix_and_host_time_per_token() -> None:
    figures = run("ar").as_dict()
    assert figures["steps"] == 299
    assert 1.0 / figures["tokens_per_second"] == pytest.approx(0.0202)


def test_a_strict_window_costs_its_padded_width() -> None:
    assert run("ar", width=9).steps[0].prefix == pytest.approx(0.011)


@pytest.mark.parametrize("window", [1, 2, 4, 5, 8, 11])
def test_a_hit_takes_the_same_time_until_the_rollout_outlasts_the_suffix(window: int) -> None:
    flat = replace(PROFILE, costs=replace(COSTS, prefix=COSTS.suffix))
    steps = run(window=window, profile=flat).steps[:-3]
    hits = [(before, now) for before, now in pairwise(steps) if before.hit and now.hit]
    assert len(hits) > 10
    # The roots reach the draft, and its branches come back, a hand-over later.
    rollout = window * 0.002 + 2 * 0.0005
    excess = max(0.0, rollout - 0.010 - 0.0002)
    for _, step in hits:
        assert step.seconds == pytest.approx(0.010 + 0.001 + 0.010 + 0.0002 + excess, abs=1e-12)
        assert step.waited == 0.0


def test_an_exit_head_on_the_drafts_device_runs_during_the_suffix() -> None:
    beside = replace(PROFILE, costs=replace(COSTS, prefix=COSTS.suffix, exit_beside=COSTS.exit))
    plan = Strategy("mirror", 2, 4, None, 0, "draft")
    steps = simulate(beside, SCRIPT, plan, new_tokens=300).steps[:-3]
    hits = [(before, now) for before, now in pairwise(steps) if before.hit and now.hit]
    assert len(hits) > 10
    for _, step in hits:
        assert step.exit == pytest.approx(0.001)
        assert step.seconds == pytest.approx(0.010 + 0.010 + 0.0002, abs=1e-12)


def test_a_miss_costs_a_fresh_draft_after_the_forward_in_progress() -> None:
    steps = run(window=7, script=StatedScript(0.8, (0.1, 0.2, 0.3, 0.4))).steps[:-4]
    misses = [(now, after) for now, after in pairwise(steps) if not now.hit]
    assert len(misses) > 10
    for _, after in misses:
        # 10.2 ms after the exit signal the draft is in its fifth forward, which ends at 10.5.
        assert after.waited == pytest.approx(0.0003 + 0.0002 + 7 * 0.002 + 0.0005, abs=1e-12)


def test_a_serial_step_takes_draft_plus_target() -> None:
    for step in run("sd", window=4).steps[:-3]:
        target = COSTS.prefix(5) + 0.010 + 0.0002
        assert step.seconds == pytest.approx(target + 4 * 0.002 + 2 * 0.0005, abs=1e-12)


def test_wider_forwards_of_the_draft_take_the_profiles_times() -> None:
    steep = replace(PROFILE, costs=replace(COSTS, draft=Curve((1, 2), (0.002, 0.003))))
    narrow, wide = run(branches=1).steps[:-6], run(profile=steep).steps[:-6]
    assert narrow[5].rollout == pytest.approx(4 * 0.002)
    # 4 candidates at each of 5 rows, and a millisecond for each row beyond the first; the first
    # forward also feeds the window's last token. Then the outcome is known: one branch continues.
    full = [now for before, now in pairwise(wide) if before.hit and now.hit and now.roots == 20]
    assert len(full) > 10
    for step in full:
        assert step.rollout == pytest.approx(0.022 + 3 * 0.002)


def test_runs_are_deterministic_and_every_mode_produces_the_same_text() -> None:
    assert run().steps == run().steps
    ends = {mode: run(mode).generated_tokens for mode in ("ar", "sd", "mirror")}
    assert set(ends.values()) == {300}
    # The last windows are shorter, because the text ends.
    accepted = [[s.accepted for s in run(mode).steps][:60] for mode in ("sd", "mirror")]
    assert accepted[0] == accepted[1]


def test_models_agree_with_the_stated_probabilities() -> None:
    script = StatedScript(0.7, (0.4, 0.6, 0.65, 0.7, 0.8))
    states = np.full(20_000, script.start, dtype=np.uint64)
    states = script.after(states, np.arange(20_000))
    assert len(np.unique(states)) == 20_000
    truth, draft = script.target(states), script.draft(states)
    assert np.mean(truth == draft) == pytest.approx(0.7, abs=0.015)
    ids, logprobs = script.exit(states, 9)
    for row in ids[:50]:
        assert len(set(row.tolist())) == 9
    assert (np.diff(logprobs, axis=1) <= 0).all()
    found = [np.mean((ids[:, :k] == truth[:, None]).any(axis=1)) for k in (1, 2, 3, 4, 5, 9)]
    assert found == pytest.approx([0.4, 0.6, 0.65, 0.7, 0.8, 0.8], abs=0.015)
    # They are independent, and a wrong token of the draft is never a candidate.
    wrong = truth != draft
    assert np.mean((ids[wrong] == truth[wrong, None]).any(axis=1)) == pytest.approx(0.8, abs=0.02)
    assert not (ids[wrong] == draft[wrong, None]).any()


@pytest.mark.parametrize("agreement", [0.3, 0.6, 0.9])
def test_acceptance_is_the_geometric_law_of_the_agreement(agreement: float) -> None:
    figures = run("sd", window=5, script=StatedScript(agreement, (0.5,)), new_tokens=2000).as_dict()
    expected = sum(agreement**k for k in range(6))
    assert figures["tokens_per_step"] == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(("candidates", "coverage"), [(1, 0.5), (2, 0.6), (4, 0.8)])
def test_the_hit_rate_is_the_coverage(candidates: int, coverage: float) -> None:
    figures = run(candidates=candidates, new_tokens=2000).as_dict()
    assert figures["hit_rate"] == pytest.approx(coverage, abs=0.05)


def test_a_lane_never_runs_two_calls_at_once() -> None:
    trace = Trace()
    taken: list[tuple[list[object], list[object]]] = []
    take = trace.take

    def remember() -> object:
        taken.append(take())  # type: ignore[arg-type]
        return taken[-1]

    trace.take = remember  # type: ignore[method-assign, assignment]
    simulate(PROFILE, SCRIPT, Strategy("mirror", 4, 4, None, 0), new_tokens=100, trace=trace)
    for kind in (0, 1):
        for lane in ("target", "draft"):
            spans = sorted(
                (s for step in taken for s in step[kind] if s.lane == lane),  # type: ignore[attr-defined]
                key=lambda s: s.start,  # type: ignore[attr-defined]
            )
            assert len(spans) > 20
            assert all(a.end <= b.start + 1e-12 for a, b in pairwise(spans))  # type: ignore[attr-defined]
