"""The statistics, by their laws."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_edge.apps.bench.measures import BUDGETS, Run, complete, figures
from mirror_edge.apps.bench.tally import Tally, rollout_forwards, tally
from mirror_edge.policy import Mode, Strategy
from mirror_edge.runtimes.profile import read
from mirror_edge.runtimes.scripts import StatedScript
from mirror_edge.runtimes.simulated import simulate
from mirror_edge.stats import Stats
from mirror_edge.trace import Spans, Trace

NAMES = ("ar", "mirror", "peer")
FEW = settings(max_examples=25, deadline=None)


def run(question: int, repeat: int, contender: str, tokens: int, seconds: float) -> Run:
    return Run(
        question=question,
        group=("qa", "rag")[question % 2],
        repeat=repeat,
        contender=contender,
        tokens=tokens,
        seconds=seconds,
        first_token=seconds / 10,
        decode_tokens=tokens - 1,
        decode_seconds=seconds * 0.9,
        tally=Tally(passes=tokens - 1, committed=tokens - 1),
        said=(question,),
    )


@st.composite
def benches(draw: st.DrawFn) -> list[Run]:
    questions, repeats = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    seconds = st.floats(0.01, 10.0)
    return [
        run(question, repeat, name, draw(st.integers(2, 99)), draw(seconds))
        for question in range(questions)
        for repeat in range(repeats)
        for name in NAMES
    ]


@FEW
@given(benches())
def test_the_reference_is_one_and_others_lie_between_their_best_and_worst_round(
    runs: list[Run],
) -> None:
    overall = figures(runs, NAMES, "ar")["overall"]
    assert overall["ar"]["speedup"] == 1.0
    speeds = {(r.contender, r.question, r.repeat): r.speed for r in runs}
    for name in NAMES:
        ratios = [
            speed / speeds["ar", question, repeat]
            for (contender, question, repeat), speed in speeds.items()
            if contender == name
        ]
        low, high = min(ratios) * (1 - 1e-9), max(ratios) * (1 + 1e-9)
        assert low <= overall[name]["speedup"] <= high
        if len(ratios) < 2:
            assert overall[name]["speedup_interval"] is None
        else:
            assert low <= overall[name]["speedup_interval"][0]
            assert overall[name]["speedup_interval"][0] <= overall[name]["speedup_interval"][1]
            assert overall[name]["speedup_interval"][1] <= high


@FEW
@given(benches(), st.sampled_from([0.25, 4.0]))
def test_a_slower_clock_changes_speeds_and_no_ratio(runs: list[Run], factor: float) -> None:
    slower = [replace(one, seconds=factor * one.seconds) for one in runs]
    before, after = (figures(all_, NAMES, "ar")["overall"] for all_ in (runs, slower))
    for name in NAMES:
        assert after[name]["speedup"] == pytest.approx(before[name]["speedup"])
        assert after[name]["speedup_interval"] == pytest.approx(before[name]["speedup_interval"])
        speed = before[name]["tokens_per_second"] / factor
        assert after[name]["tokens_per_second"] == pytest.approx(speed)


@FEW
@given(benches(), st.randoms(use_true_random=False))
def test_the_order_of_the_records_means_nothing(runs: list[Run], chance: random.Random) -> None:
    shuffled = chance.sample(runs, len(runs))
    before, after = (figures(all_, NAMES, "ar") for all_ in (runs, shuffled))
    assert set(before["categories"]) == set(after["categories"])
    for name in NAMES:
        for key in ("tokens_per_second", "speedup", "mean_accepted_tokens", "same_text"):
            assert after["overall"][name][key] == pytest.approx(before["overall"][name][key])


@FEW
@given(benches())
def test_groups_of_equal_size_average_to_the_whole(runs: list[Run]) -> None:
    found = figures(runs, NAMES, "ar")
    total = sum(one["ar"]["tokens"] for one in found["categories"].values())
    assert total == found["overall"]["ar"]["tokens"]
    weighted = sum(
        one["ar"]["tokens_per_second"] * one["ar"]["answers"]
        for one in found["categories"].values()
    )
    whole = found["overall"]["ar"]
    assert weighted / whole["answers"] == pytest.approx(whole["tokens_per_second"])


@FEW
@given(benches(), st.data())
def test_a_round_that_was_cut_short_does_not_count(runs: list[Run], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(runs)))
    kept = complete(runs[:cut], NAMES)
    assert kept == runs[: cut - cut % len(NAMES)]


def test_a_deviation_is_over_the_repeats() -> None:
    runs = [run(q, r, "ar", 10, 1.0 + r) for q in range(3) for r in range(2)]
    found = figures(runs, ["ar"], "ar")["overall"]["ar"]
    assert found["tokens_per_second"] == pytest.approx(7.5)
    assert found["tokens_per_second_deviation"] == pytest.approx(3.5355, rel=1e-4)
    assert figures(runs[::2], ["ar"], "ar")["overall"]["ar"]["tokens_per_second_deviation"] is None


def test_a_difference_that_is_there_in_every_round_has_a_narrow_interval() -> None:
    chance = random.Random(1)
    runs = []
    for question in range(20):
        for repeat in range(3):
            drift = chance.uniform(0.5, 2.0)
            runs.append(run(question, repeat, "ar", 50, drift))
            runs.append(run(question, repeat, "mirror", 50, drift / 1.5))
    low, high = figures(runs, ["ar", "mirror"], "ar")["overall"]["mirror"]["speedup_interval"]
    assert low == pytest.approx(1.5)
    assert high == pytest.approx(1.5)


def test_energy_is_known_of_all_answers_or_unknown() -> None:
    runs = [replace(run(q, 0, "ar", 10, 1.0), joules=5.0) for q in range(2)]
    assert figures(runs, ["ar"], "ar")["overall"]["ar"]["joules_per_token"] == pytest.approx(0.5)
    runs[0] = replace(runs[0], joules=None)
    assert figures(runs, ["ar"], "ar")["overall"]["ar"]["joules_per_token"] is None


def simulated(mode: Mode) -> tuple[Stats, Spans]:
    script = StatedScript(0.8, (0.5, 0.6, 0.7, 0.8))
    kept = (trace := Trace()).keep()
    plan = Strategy(mode, 4, 4, None, 0)
    stats = simulate(read("lunar-lake"), script, plan, new_tokens=300, trace=trace)
    trace.take()
    return stats, kept


@pytest.mark.parametrize("mode", ["ar", "sd", "mirror"])
def test_a_tally_says_what_the_answer_says_of_itself(mode: Mode) -> None:
    stats, spans = simulated(mode)
    found, own = tally(stats.steps, rollout_forwards(spans)), stats.as_dict()
    assert found.committed / found.passes == pytest.approx(own["tokens_per_step"])
    assert sum(found.accepted.values()) == own["draft_tokens_accepted"]
    assert (found.hits, found.looked_up - found.hits) == (
        own["hypothesis_hits"],
        own["hypothesis_misses"],
    )
    if mode == "mirror":
        assert found.hidden / found.rollout == pytest.approx(own["overlap_ratio"])
        # A rollout takes four forwards, where a miss does not end it early.
        assert 3.0 < found.rollout_forwards / found.looked_up <= 4.0
        # Every outcome that was hit has a rank, and every root was drafted for.
        assert sum(found.ranks.values()) == found.hits
    else:
        assert found.rollout_forwards == 0
    assert (found.exposed > 0.0) == (mode != "ar")


@given(st.integers(0, 60))
def test_tallies_add_up_to_the_tally_of_all_steps(cut: int) -> None:
    steps = STEPS
    parts = tally(steps[:cut]) + tally(steps[cut:])
    whole = tally(steps)
    assert (parts.judged, parts.accepted, parts.ranks) == (
        whole.judged,
        whole.accepted,
        whole.ranks,
    )
    assert parts.exposed == pytest.approx(whole.exposed)
    assert Tally.sum([]) == Tally()


STEPS = simulated("mirror")[0].steps


def test_acceptance_and_hits_are_the_stated_ones() -> None:
    stats = simulated("mirror")[0]
    runs = [replace(run(0, 0, "mirror", 300, 1.0), tally=tally(stats.steps))]
    found = figures(runs, ["mirror"], "mirror")["overall"]["mirror"]
    assert len(found["acceptance_by_position"]) == 4
    assert found["acceptance_by_position"] == pytest.approx([0.8] * 4, abs=0.15)
    rates = list(found["hit_rate_by_branches"].values())
    assert len(rates) == len(BUDGETS)
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(found["hit_rate"])
