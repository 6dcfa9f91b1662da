"""Async generators driven from plain code."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator

import pytest

from mirror_edge.driving import drive


class AlarmError(Exception):
    """Raised by a signal handler of the caller's."""


async def counting(closed: list[bool], wait: float = 0.0) -> AsyncGenerator[int]:
    try:
        for number in range(3):
            await asyncio.sleep(wait)
            yield number
    finally:
        closed.append(True)


def test_all_items_come_in_order_and_the_generator_is_closed() -> None:
    closed: list[bool] = []
    assert list(drive(counting(closed))) == [0, 1, 2]
    assert closed == [True]


def test_closing_early_closes_the_generator() -> None:
    closed: list[bool] = []
    driven = drive(counting(closed))
    assert next(driven) == 0
    driven.close()
    assert closed == [True]


def test_it_works_in_a_thread_whose_loop_is_running() -> None:
    async def notebook() -> list[int]:
        return list(drive(counting([])))

    assert asyncio.run(notebook()) == [0, 1, 2]


def test_a_signal_handler_that_raises_is_heard_and_the_generator_closed() -> None:
    def on_alarm(*_: object) -> None:
        raise AlarmError

    closed: list[bool] = []
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(AlarmError):
            next(drive(counting(closed, wait=30.0)))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert closed == [True]
