"""The thread lane: who makes a call, and in which order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from mirror_edge.errors import ClosedError, DeviceError
from mirror_edge.hypotheses import Root
from mirror_edge.lanes import Dropped, ThreadLane
from mirror_edge.trace import Trace


@pytest.fixture
def shared() -> Iterator[ThreadLane]:
    lane = ThreadLane("test", Trace(), shared=True)
    yield lane
    lane.close()


def test_an_idle_shared_lane_leaves_a_later_call_to_those_who_wait(shared: ThreadLane) -> None:
    made = shared.later("later", threading.get_ident)
    assert made().result() == threading.get_ident()


def test_a_lane_with_a_device_of_its_own_makes_every_call_itself() -> None:
    lane = ThreadLane("test", Trace())
    made = lane.later("later", threading.get_ident)
    assert made().result() == lane.start("now", threading.get_ident).result()
    assert made().result() != threading.get_ident()
    lane.close()


@pytest.mark.parametrize("first", ["before", "after"])
def test_a_later_call_comes_after_those_that_were_started_before_somebody_waits(
    shared: ThreadLane, first: str
) -> None:
    said: list[str] = []

    def slow() -> None:
        time.sleep(0.02)
        said.append("started")

    if first == "before":
        shared.start("slow", slow)
    made = shared.later("later", said.append, "later")
    if first == "after":
        shared.start("slow", slow)
    made().result()
    assert said == ["started", "later"]


def test_what_a_later_call_raises_is_in_its_future(shared: ThreadLane) -> None:
    failed = shared.later("later", int, "no number")()
    with pytest.raises(ValueError, match="no number"):
        failed.result()
    assert shared.later("later", int, "7")().result() == 7


def test_two_threads_never_use_the_device_at_once(shared: ThreadLane) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.0005)
        inside -= 1

    def other() -> None:
        for _ in range(40):
            shared.start("started", work).result()

    beside = threading.Thread(target=other)
    beside.start()
    for _ in range(40):
        shared.later("later", work)().result()
    beside.join()
    assert most == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system confines nothing")
def test_a_lane_that_may_not_use_its_cores_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refused)
    with pytest.raises(DeviceError, match="cannot use core 0, 1: not permitted"):
        ThreadLane("refused", Trace(), (1, 0))
    assert not [thread for thread in threading.enumerate() if thread.name == "lane-refused"]


def test_a_closed_lane_refuses_later_calls() -> None:
    lane = ThreadLane("test", Trace(), shared=True)
    made = lane.later("later", int)
    lane.close()
    with pytest.raises(ClosedError):
        made()


def test_what_is_started_while_the_lane_is_closed_is_still_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane = ThreadLane("test", Trace())
    closing, queue = threading.Thread(target=lane.close), lane._queue

    class Slow:
        """Lets another thread try to close the lane before anything is queued."""

        get = queue.get

        def put(self, work: Any) -> None:
            if work is not None:
                closing.start()
                closing.join(0.2)
            queue.put(work)

    monkeypatch.setattr(lane, "_queue", Slow())
    assert lane.start("last", int).result(timeout=5) == 0
    closing.join()


def test_what_is_dropped_twice_is_told_once() -> None:
    told: list[bool] = []
    dropped = Dropped()
    dropped.tell(lambda: told.append(dropped.is_set()))
    dropped.drop_all_but(Root(0, 1))
    dropped.set()
    dropped.set()
    assert told == [False, True]


def test_a_call_that_has_ended_hears_of_nothing_more() -> None:
    told: list[bool] = []
    dropped = Dropped()
    call = partial(told.append, True)
    dropped.tell(call)
    dropped.tell_no_more(call)
    dropped.set()
    assert told == []
