"""Spans, step records and the figures of an answer."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_edge.stats import Stats, StepRecord
from mirror_edge.trace import Span, Trace, covered, overlap


def spans(ticks: list[tuple[int, int]]) -> list[Span]:
    return [Span("lane", "name", float(start), float(start + length)) for start, length in ticks]


TICKS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=8)


def ticks_of(some: list[Span]) -> set[int]:
    return {tick for span in some for tick in range(int(span.start), int(span.end))}


@given(TICKS)
@settings(deadline=None)
def test_covered_counts_every_moment_once(ticks: list[tuple[int, int]]) -> None:
    assert covered(iter(spans(ticks))) == len(ticks_of(spans(ticks)))


@given(st.lists(st.booleans(), max_size=40), st.lists(st.booleans(), max_size=40))
@settings(deadline=None)
def test_overlap_counts_the_moments_of_both(some: list[bool], others: list[bool]) -> None:
    """Each set is disjoint: spans of one tick, here and there."""
    a = spans([(tick, 1) for tick, here in enumerate(some) if here])
    b = spans([(tick, 1) for tick, here in enumerate(others) if here])
    assert overlap(iter(a), iter(b)) == len(ticks_of(a) & ticks_of(b))


@given(st.tuples(st.integers(0, 9), st.integers(0, 9)), TICKS.filter(lambda t: len(t) < 2))
@settings(deadline=None)
def test_overlap_of_two_spans_of_any_length(
    one: tuple[int, int], other: list[tuple[int, int]]
) -> None:
    a, b = spans([one]), spans(other)
    assert overlap(a, b) == overlap(b, a) == len(ticks_of(a) & ticks_of(b))


def test_a_trace_hands_every_span_out_once() -> None:
    trace, span = Trace(), Span("gpu", "prefix", 1.0, 3.5)
    trace.calls.append(span)
    trace.runs.append(span)
    assert trace.take() == ([span], [span])
    assert trace.take() == ([], [])


def step(
    calls: list[Span],
    runs: list[Span],
    window: tuple[float, float] = (0.0, 10.0),
    *,
    proposed: int = 4,
    accepted: int = 2,
    committed: int = 3,
    roots: int = 6,
    hit: bool | None = True,
) -> StepRecord:
    decided = partial(
        StepRecord,
        mode="mirror",
        waited=0.0,
        depth=4,
        rank=None,
        proposed=proposed,
        accepted=accepted,
        committed=committed,
        roots=roots,
        hit=hit,
    )
    return StepRecord.of((calls, runs), window, decided)


CALLS = [
    Span("target", "prefix", 0.0, 3.0),
    Span("target", "suffix", 3.0, 8.0),
    Span("draft", "rollout", 3.5, 9.0),
    Span("draft", "fresh", 0.0, 0.5),
]
RUNS = [
    Span("target", "prefix", 0.5, 2.0),
    Span("target", "exit", 2.0, 2.25),
    Span("target", "suffix", 3.0, 7.5),
    Span("draft", "draft", 4.0, 5.0),
    Span("draft", "draft", 5.0, 8.5),
]


def test_a_step_sorts_its_spans_by_what_they_were() -> None:
    record = step(CALLS, RUNS)
    assert (record.prefix, record.exit, record.suffix) == (1.5, 0.25, 4.5)
    assert (record.rollout, record.fresh) == (5.5, 0.5)
    assert record.hidden == 4.0  # of the rollout's call, while the suffix ran: 3.5 to 7.5
    assert record.host == 10.0 - (1.75 + 5.5)  # runs cover 0.5 to 2.25 and 3 to 8.5


def test_what_the_law_does_not_know_of_is_told_apart_from_the_host() -> None:
    hit = step(CALLS, RUNS)
    assert hit.beyond_law == 10.0 - (0.5 + 1.5 + 0.25 + 5.5)  # the rollout outlasts the suffix
    missed = step(CALLS, RUNS, hit=False)
    assert missed.beyond_law == 10.0 - (0.5 + 1.5 + 0.25 + 4.5)
    assert step(CALLS, RUNS, window=(3.0, 8.5)).beyond_law == 0.0


def test_host_time_counts_runs_only_while_the_step_lasts() -> None:
    assert step(CALLS, RUNS, window=(1.0, 5.0)).host == 4.0 - (1.25 + 2.0)
    assert step(CALLS, RUNS, window=(3.0, 8.5)).host == 0.0


def test_the_figures_add_up() -> None:
    steps = [
        step(CALLS, RUNS),
        step([], [], proposed=4, accepted=4, committed=5, roots=2, hit=False),
        step([], [], proposed=0, accepted=0, committed=1, roots=0, hit=None),
        step([], [], proposed=3, accepted=2, committed=1, roots=4, hit=True),
    ]
    stats = Stats(
        prompt_tokens=7,
        prefilled_tokens=5,
        generated_tokens=11,
        time_to_first_token=0.25,
        decode_seconds=4.0,
        draft_losses=["gone"],
        draft_restarts=1,
        draft_lapses=2,
        steps=steps,
    )
    figures = stats.as_dict()
    assert json.loads(json.dumps(figures)) == figures
    expected = {
        "prompt_tokens": 7,
        "prefilled_tokens": 5,
        "generated_tokens": 11,
        "steps": 4,
        "steps_by_mode": {"mirror": 4},
        "tokens_per_step": 10 / 4,
        "draft_tokens_proposed": 11,
        "draft_tokens_accepted": 8,
        "acceptance_rate": 8 / 11,
        "acceptance_lengths": {"2": 2, "4": 1},
        "hypothesis_hits": 2,
        "hypothesis_misses": 1,
        "hit_rate": 2 / 3,
        "roots_per_step": 12 / 3,
        "overlap_ratio": 4.0 / 5.5,
        "time_to_first_token_s": 0.25,
        "tokens_per_second": 10 / 4.0,
        "looked_up_steps": 0,
        "draft_losses": ["gone"],
        "draft_restarts": 1,
        "draft_lapses": 2,
    }
    assert {name: figures[name] for name in expected} == expected
    assert figures["median_step_ms"] == {
        "seconds": 10_000.0,
        "prefix": 1_500.0,
        "exit": 250.0,
        "suffix": 4_500.0,
        "rollout": 5_500.0,
        "fresh": 500.0,
        "host": 10_000.0,
    }
    assert figures["placement"] == figures["time_by_provider"] == {}
    assert figures["bytes_per_step"] == {"sent": 0, "read": 0}
    more = {"median_step_ms", "placement", "time_by_provider", "bytes_per_step"}
    assert set(figures) == {*expected, *more}


def test_time_is_shared_out_among_providers_as_nodes_are() -> None:
    record = step(
        [], [Span("gpu", "prefix", 0.0, 3.0, sent=8, read=0), Span("npu", "draft", 1.0, 2.0, 0, 40)]
    )
    placed = {"prefix": {"Gpu": 3, "Cpu": 1}, "draft": {"Npu": 5}, "exit": {"Gpu": 2}}
    figures = Stats(steps=[record, record], placed=placed).as_dict()
    assert figures["placement"]["prefix"] == {"Gpu": 0.75, "Cpu": 0.25}
    assert figures["time_by_provider"] == {"Gpu": 2.25 / 4, "Cpu": 0.75 / 4, "Npu": 1.0 / 4}
    assert figures["bytes_per_step"] == {"sent": 8, "read": 40}


def test_the_median_step_is_in_milliseconds() -> None:
    stats = Stats(steps=[step(CALLS, RUNS, (0.0, ended)) for ended in (10.0, 4.0, 9.0)])
    assert stats.as_dict()["median_step_ms"]["seconds"] == 9_000.0
    assert stats.as_dict()["median_step_ms"]["exit"] == 250.0


def test_the_lengths_are_in_the_order_of_numbers() -> None:
    steps = [step([], [], proposed=12, accepted=a) for a in (10, 2, 0, 10)]
    lengths = Stats(steps=steps).as_dict()["acceptance_lengths"]
    assert list(lengths.items()) == [("0", 1), ("2", 1), ("10", 2)]


@pytest.mark.parametrize(
    "ratio",
    [
        "tokens_per_step",
        "acceptance_rate",
        "hit_rate",
        "roots_per_step",
        "overlap_ratio",
        "tokens_per_second",
    ],
)
def test_a_ratio_without_a_denominator_is_none(ratio: str) -> None:
    figures = Stats().as_dict()
    assert figures[ratio] is None
    assert set(figures["median_step_ms"].values()) == {None}
    assert json.loads(json.dumps(figures)) == figures
