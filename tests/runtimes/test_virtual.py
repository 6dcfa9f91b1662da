"""Lanes on a virtual clock: exact times, one order, and waiting that takes no real time."""

from __future__ import annotations

from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_edge.runtimes.virtual import VirtualClock, VirtualLane
from mirror_edge.trace import Span, Trace


def lanes(hand_over: float = 0.0) -> tuple[VirtualClock, Trace, VirtualLane, VirtualLane]:
    clock, trace = VirtualClock(), Trace()
    return (
        clock,
        trace,
        VirtualLane("a", trace, clock),
        VirtualLane("b", trace, clock, hand_over=hand_over),
    )


def test_two_lanes_overlap_and_each_runs_one_call_at_a_time() -> None:
    clock, trace, a, b = lanes()
    first = a.start("one", clock.sleep, 3.0)
    second = a.start("two", clock.sleep, 1.0)
    other = b.start("three", clock.sleep, 2.0)
    assert clock() == 0.0
    first.result()
    assert clock() == 3.0
    other.result()
    assert clock() == 3.0
    second.result()
    assert clock() == 4.0
    assert trace.calls == [
        Span("b", "three", 0.0, 2.0),
        Span("a", "one", 0.0, 3.0),
        Span("a", "two", 3.0, 4.0),
    ]


def test_a_lane_that_waits_for_another_resumes_when_that_is_done() -> None:
    clock, _, a, b = lanes()
    moments = []

    def work() -> str:
        clock.sleep(1.0)
        helper = b.start("help", lambda: (clock.sleep(5.0), "help")[1])
        clock.sleep(2.0)
        moments.append(clock())
        result = helper.result()
        moments.append(clock())
        return result

    assert a.start("work", work).result() == "help"
    assert moments == [3.0, 6.0]


def test_a_lane_sees_what_another_has_set_when_it_next_resumes() -> None:
    clock, _, a, b = lanes()
    dropped, seen = Event(), []

    def long() -> None:
        while not dropped.is_set():
            clock.sleep(2.0)
        seen.append(clock())

    def work() -> None:
        b.start("long", long)
        clock.sleep(5.0)
        dropped.set()

    a.start("work", work).result()
    clock.sleep(10.0)
    assert seen == [6.0]
    assert clock() == 15.0


def test_a_hand_over_takes_time_in_both_directions_and_blocks_no_lane() -> None:
    clock, trace, _, b = lanes(hand_over=0.5)
    first, second = b.start("one", clock.sleep, 1.0), b.start("two", clock.sleep, 1.0)
    first.result()
    assert clock() == 2.0
    second.result()
    assert clock() == 3.0
    assert [(span.start, span.end) for span in trace.calls] == [(0.5, 1.5), (1.5, 2.5)]


def test_an_error_is_raised_where_the_result_is_awaited() -> None:
    clock, trace, a, _ = lanes()

    def broken() -> None:
        clock.sleep(1.0)
        raise KeyError("gone")

    failing = a.start("broken", broken)
    with pytest.raises(KeyError):
        failing.result()
    assert trace.calls == [Span("a", "broken", 0.0, 1.0)]
    assert a.start("whole", lambda: 1).result() == 1


def test_a_call_that_has_not_begun_can_be_cancelled() -> None:
    clock, trace, a, _ = lanes()
    a.start("one", clock.sleep, 1.0)
    never = a.start("never", clock.sleep, 1.0)
    assert never.cancel()
    last = a.start("last", clock.sleep, 1.0)
    last.result()
    assert [span.name for span in trace.calls] == ["one", "last"]
    assert clock() == 2.0


def test_a_deadlock_is_an_error() -> None:
    _, _, a, b = lanes()

    def first() -> None:
        b.start("second", second).result()

    def second() -> None:
        mine.result()

    mine = a.start("first", first)
    with pytest.raises(RuntimeError, match="deadlock"):
        mine.result()


COSTS = st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=12)


@given(COSTS)
@settings(deadline=None, max_examples=40)
def test_every_call_begins_when_its_lane_is_free(calls: list[tuple[bool, int]]) -> None:
    clock, trace, a, b = lanes()
    for on_a, cost in calls:
        (a if on_a else b).start("call", clock.sleep, float(cost))
    clock.sleep(200.0)
    for lane, mine in (("a", True), ("b", False)):
        costs = [cost for on_a, cost in calls if on_a is mine]
        ends = [sum(costs[: i + 1]) for i in range(len(costs))]
        assert [span.end for span in trace.calls if span.lane == lane] == ends
    assert [span.end for span in trace.calls] == sorted(span.end for span in trace.calls)
