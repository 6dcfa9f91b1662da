"""The server: one model, one answer at a time, and a queue of those who wait for theirs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mirror_edge.apps.serve.hosts import KnownHosts
from mirror_edge.apps.serve.request import Asked, read
from mirror_edge.apps.serve.response import DONE, Said, event, refusal, status
from mirror_edge.errors import MirrorEdgeError, OptionError

if TYPE_CHECKING:
    from mirror_edge import Chunk, Model
    from mirror_edge.apps.serve.request import Defaults, Endpoint

__all__ = ["application"]

_log = logging.getLogger("mirror_edge")

_STREAM = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # A proxy is to pass on every piece as it comes.
}
_BODY, _BODY_A_TOKEN = 1 << 20, 64
"""Bytes of a request at most: so many, and so many for each token of the context."""
_GONE = 499
"""The status of a reply that nobody is there to read."""


def application(
    model: Model,
    defaults: Defaults,
    *,
    hosts: Sequence[str] = ("*",),
    origins: Sequence[str] = (),
    on_answer: Callable[[Said], None] = lambda _: None,
) -> Starlette:
    """The web application that answers with `model`.

    It answers requests to `hosts` only, so that no web page reaches it under a name of its own;
    browsers hand its answers to pages from `origins`. `on_answer` hears of every one that ended.
    """
    serving = _Serving(model, defaults, on_answer)
    return Starlette(
        routes=[
            Route("/health", serving.health),
            Route("/v1/models", serving.models),
            Route("/v1/models/{model:path}", serving.models),
            Route("/v1/chat/completions", serving.endpoint("chat"), methods=["POST"]),
            Route("/v1/completions", serving.endpoint("text"), methods=["POST"]),
        ],
        middleware=[
            Middleware(KnownHosts, hosts),
            Middleware(
                CORSMiddleware,
                allow_origins=list(origins),
                allow_methods=["*"],
                allow_headers=["*"],
            ),
        ],
        exception_handlers={
            MirrorEdgeError: _refuse,
            HTTPException: _refuse,
            ClientDisconnect: _leave,
            Exception: _refuse,
        },
    )


class _Serving:
    """What a request finds."""

    def __init__(self, model: Model, defaults: Defaults, on_answer: Callable[[Said], None]) -> None:
        self._model, self._defaults, self._on_answer = model, defaults, on_answer
        self._name = model.bundle.manifest.name
        self._most = _BODY + _BODY_A_TOKEN * model.context
        self._reading, self._turn = asyncio.Lock(), asyncio.Lock()

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        mine = {"id": self._name, "object": "model", "created": 0, "owned_by": "mirror-edge"}
        if "model" not in request.path_params:
            return JSONResponse({"object": "list", "data": [mine]})
        self._know(request.path_params["model"])
        return JSONResponse(mine)

    def endpoint(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            # A page of another origin may send text, but not JSON, without being asked first.
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise OptionError(f"content-type is {kind!r}; it must be application/json.")
            body = await _body(request, self._most)
            # One at a time, beside the event loop: a long prompt is to hold up nobody's answer.
            async with self._reading:
                asked, chunks = await asyncio.to_thread(self._read, endpoint, body)
            said = Said(asked, self._name)
            if asked.stream:
                return StreamingResponse(self._events(said, chunks), headers=_STREAM)
            return await _unless_gone(request, self._whole(said, chunks))

        return answer

    def _read(self, endpoint: Endpoint, body: bytes) -> tuple[Asked, AsyncGenerator[Chunk]]:
        """Whatever can be refused is refused here, with a status to say so."""
        asked = read(endpoint, body, self._defaults)
        self._know(asked.model)
        return asked, self._model.astream(asked.prompt, **asked.options)

    def _know(self, model: str | None) -> None:
        if model not in (None, self._name):
            raise HTTPException(404, f"model is {model!r}; here is {self._name!r}.")

    async def _whole(self, said: Said, chunks: AsyncGenerator[Chunk]) -> Response:
        async with self._turn, aclosing(chunks):
            async for chunk in chunks:
                said.hear(chunk)
        self._on_answer(said)
        return JSONResponse(said.whole())

    async def _events(self, said: Said, chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[str]:
        """The answer piece by piece; ends early when its reader has gone.

        A reader who is slow, or does not read at all, is waited for with what was said, and not
        with the model.
        """
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        telling = asyncio.create_task(self._tell(said, chunks, pieces.put_nowait))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await telling
        finally:
            telling.cancel()

    async def _tell(
        self, said: Said, chunks: AsyncGenerator[Chunk], tell: Callable[[str | None], None]
    ) -> None:
        """Tell the answer's pieces as they come, and None behind the last one."""
        try:
            async with self._turn, aclosing(chunks):
                if said.asked.endpoint == "chat":
                    tell(event(said.opening()))
                async for chunk in chunks:
                    said.hear(chunk)
                    if chunk.text or chunk.finish_reason:
                        tell(event(said.piece(chunk)))
            self._on_answer(said)
            if said.asked.with_usage:
                tell(event(said.closing()))
            tell(DONE)
        except Exception as error:  # The status was sent long ago.
            if not isinstance(error, MirrorEdgeError):
                _log.exception("an answer failed")
            tell(event(refusal(error)))
        finally:
            tell(None)


async def _body(request: Request, most: int) -> bytes:
    """What was sent. Too much is read to its end, so that its sender hears why, and not kept."""
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            body += part
    if size > most:
        raise HTTPException(413, f"the request body is {size:,} bytes; the limit is {most:,}.")
    return bytes(body)


async def _unless_gone(request: Request, answer: Coroutine[None, None, Response]) -> Response:
    """The answer, which is given up once its reader has gone."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answering, leaving = asyncio.create_task(answer), asyncio.create_task(left())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else Response(status_code=_GONE)
    finally:
        answering.cancel()
        leaving.cancel()


async def _refuse(_: Request, error: Exception) -> Response:
    """An error in the words of the API."""
    if isinstance(error, HTTPException):
        return JSONResponse(refusal(error.detail), error.status_code, error.headers)
    return JSONResponse(refusal(error), status(error))


async def _leave(_: Request, __: Exception) -> Response:
    return Response(status_code=_GONE)
