"""Driving a coroutine from plain code: on an event loop here, or beside one that runs already."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["drive", "run"]

T = TypeVar("T")


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; beside a loop that this thread runs already (a notebook), in another."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as beside:
        beside.submit(asyncio.run, work).result()


def drive(chunks: AsyncGenerator[T]) -> Generator[T]:
    """An async generator as a plain one, on an event loop of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        yield from _drive_here(chunks)
    else:
        # In a notebook a loop runs in this thread already, so ours gets another thread.
        yield from _drive_beside(chunks)


def _drive_here(chunks: AsyncGenerator[T]) -> Generator[T]:
    with asyncio.Runner() as runner:
        try:
            while True:
                try:
                    yield runner.run(_next(chunks))
                except StopAsyncIteration:
                    return
        finally:
            runner.run(_close(chunks))


def _drive_beside(chunks: AsyncGenerator[T]) -> Generator[T]:
    wanted: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[T | BaseException | None] = SimpleQueue()

    def work() -> None:
        driven = _drive_here(chunks)
        try:
            while wanted.get():
                made.put(next(driven, None))
        except BaseException as error:
            made.put(error)
        finally:
            driven.close()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            wanted.put(True)
            item = made.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item
    finally:
        wanted.put(False)
        worker.join()


async def _next(chunks: AsyncGenerator[T]) -> T:
    return await anext(chunks)


async def _close(chunks: AsyncGenerator[Any]) -> None:
    # A signal handler that raised has left the step it interrupted behind.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await chunks.aclose()
