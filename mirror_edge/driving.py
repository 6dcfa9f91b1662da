"""Work that is done elsewhere, as a generator of parts: what to hand out, and what to wait for.

The same generator serves plain code, which waits in place, and an event loop, which awaits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import Future
from contextlib import closing, suppress
from typing import Any, TypeVar

__all__ = ["Parts", "drive", "drive_async", "waited"]

T = TypeVar("T")

Parts = Generator[T | Future[Any], None, None]
"""What to hand out, and futures: whoever asks for the next part waits for them, before or then."""


def waited(future: Future[T]) -> Generator[Future[T], None, T]:
    """Within `Parts`: the future as a part, and its result once that was waited for."""
    yield future
    return future.result()


def drive(parts: Parts[T]) -> Generator[T]:
    """The parts without the futures; this thread waits."""
    with closing(parts):
        for part in parts:
            if not isinstance(part, Future):
                yield part


async def drive_async(parts: Parts[T]) -> AsyncGenerator[T]:
    """The parts without the futures; the running event loop goes on meanwhile."""
    with closing(parts):
        for part in parts:
            if isinstance(part, Future):
                with suppress(Exception):  # It is `parts` that asks for the result.
                    await asyncio.wrap_future(part)
            else:
                yield part
