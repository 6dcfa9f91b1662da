"""Parts with futures between them, driven from plain code and from an event loop."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from mirror_edge.driving import Parts, drive, drive_async, waited


class AlarmError(Exception):
    """Raised by a signal handler of the caller's."""


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def counting(pool: ThreadPoolExecutor, closed: list[bool], wait: float = 0.002) -> Parts[int]:
    def late(number: int) -> int:
        time.sleep(wait)
        return number

    try:
        for number in range(3):
            yield (yield from waited(pool.submit(late, number)))
    finally:
        closed.append(True)


def test_all_parts_come_in_order_and_the_generator_is_closed(elsewhere: ThreadPoolExecutor) -> None:
    closed: list[bool] = []
    assert list(drive(counting(elsewhere, closed))) == [0, 1, 2]
    assert closed == [True]


def test_closing_early_closes_the_generator(elsewhere: ThreadPoolExecutor) -> None:
    closed: list[bool] = []
    driven = drive(counting(elsewhere, closed))
    assert next(driven) == 0
    driven.close()
    assert closed == [True]


def test_an_event_loop_goes_on_while_it_waits(elsewhere: ThreadPoolExecutor) -> None:
    async def both() -> tuple[list[int], int]:
        turns = 0

        async def turning() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(turning())
        found = [part async for part in drive_async(counting(elsewhere, [], wait=0.02))]
        beside.cancel()
        return found, turns

    found, turns = asyncio.run(both())
    assert found == [0, 1, 2]
    assert turns > 10


def failing(pool: ThreadPoolExecutor, heard: list[BaseException]) -> Parts[str]:
    try:
        yield from waited(pool.submit(int, "no number"))
    except ValueError as error:
        heard.append(error)
        yield "went on"


def test_the_generator_hears_of_a_failure_and_may_go_on(elsewhere: ThreadPoolExecutor) -> None:
    async def awaited() -> list[str]:
        return [part async for part in drive_async(failing(elsewhere, heard))]

    heard: list[BaseException] = []
    assert list(drive(failing(elsewhere, heard))) == ["went on"]
    assert asyncio.run(awaited()) == ["went on"]
    assert len(heard) == 2


def test_a_cancelled_task_closes_the_generator_and_cancels_what_has_not_begun() -> None:
    never: Future[int] = Future()
    closed: list[bool] = []

    def standing() -> Parts[int]:
        try:
            yield (yield from waited(never))
        finally:
            closed.append(True)

    async def cancelled() -> None:
        driven: AsyncGenerator[int] = drive_async(standing())
        task = asyncio.create_task(anext(driven))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert closed == [True]
    assert never.cancelled()


def test_a_signal_handler_that_raises_is_heard_and_the_generator_closed(
    elsewhere: ThreadPoolExecutor,
) -> None:
    def on_alarm(*_: object) -> None:
        raise AlarmError

    closed: list[bool] = []
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(AlarmError):
            next(drive(counting(elsewhere, closed, wait=0.3)))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert closed == [True]
