"""Work done elsewhere, as a generator of parts: output, and the futures to wait for.

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
"""Yields output, and the futures that its next part depends on."""


def waited(future: Future[T]) -> Generator[Future[T], None, T]:
    """Within `Parts`: yield the future, then return its result."""
    yield future
    return future.result()


def drive(parts: Parts[T]) -> Generator[T]:
    """The output of `parts`, without the futures; this thread waits for them."""
    with closing(parts):
        for part in parts:
            if not isinstance(part, Future):
                yield part


async def drive_async(parts: Parts[T]) -> AsyncGenerator[T]:
    """The output of `parts`, without the futures; the running event loop awaits them."""
    with closing(parts):
        for part in parts:
            if isinstance(part, Future):
                with suppress(Exception):  # `parts` itself asks for the result.
                    await asyncio.wrap_future(part)
            else:
                yield part
