"""The server: one model, one answer at a time, and a queue of those who wait for theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mirror_edge.apps.serve import asking, saying
from mirror_edge.errors import ClosedError, MirrorEdgeError, OptionError

if TYPE_CHECKING:
    from mirror_edge import Chunk, Model
    from mirror_edge.apps.serve.asking import Defaults, Endpoint

__all__ = ["application"]


def application(
    model: Model,
    defaults: Defaults,
    *,
    hosts: Sequence[str] = ("*",),
    origins: Sequence[str] = (),
    on_answer: Callable[[saying.Said], None] = lambda _: None,
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
            Route("/v1/chat/completions", serving.endpoint("chat"), methods=["POST"]),
            Route("/v1/completions", serving.endpoint("text"), methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
            Middleware(
                CORSMiddleware,
                allow_origins=list(origins),
                allow_methods=["*"],
                allow_headers=["*"],
            ),
        ],
        exception_handlers={MirrorEdgeError: _refuse, HTTPException: _refuse},
    )


class _Serving:
    """What a request finds."""

    def __init__(
        self, model: Model, defaults: Defaults, on_answer: Callable[[saying.Said], None]
    ) -> None:
        self._model, self._defaults, self._on_answer = model, defaults, on_answer
        self._name = model.bundle.manifest.name
        self._turn = asyncio.Lock()

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, _: Request) -> Response:
        mine = {"id": self._name, "object": "model", "created": 0, "owned_by": "mirror-edge"}
        return JSONResponse({"object": "list", "data": [mine]})

    def endpoint(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            # A page of another origin may send text, but not JSON, without being asked first.
            kind = request.headers.get("content-type", "").partition(";")[0].strip()
            if kind != "application/json":
                raise OptionError(f"content-type is {kind!r}; it must be application/json.")
            asked = asking.read(endpoint, await request.body(), self._defaults)
            if asked.model not in (None, self._name):
                raise HTTPException(404, f"model is {asked.model!r}; here is {self._name!r}.")
            said = saying.Said(asked, self._name)
            # Whatever can be refused is refused here, with a status to say so.
            chunks = self._model.astream(asked.prompt, **asked.options)
            if asked.stream:
                return StreamingResponse(self._events(said, chunks), media_type="text/event-stream")
            async with self._turn, aclosing(chunks):
                while not (said.finish_reason or await request.is_disconnected()):
                    said.hear(await anext(chunks))
            if not said.finish_reason:
                return Response(status_code=499)  # Nobody is there to read it.
            self._on_answer(said)
            return JSONResponse(said.whole())

        return answer

    async def _events(
        self, said: saying.Said, chunks: AsyncGenerator[Chunk]
    ) -> AsyncGenerator[str]:
        """The answer piece by piece; ends early when its reader has gone."""
        try:
            async with self._turn, aclosing(chunks):
                if said.asked.endpoint == "chat":
                    yield saying.event(said.opening())
                async for chunk in chunks:
                    said.hear(chunk)
                    if chunk.text or chunk.finish_reason:
                        yield saying.event(said.piece(chunk))
            self._on_answer(said)
            if said.asked.with_usage:
                yield saying.event(said.closing())
        except MirrorEdgeError as error:  # The status was sent long ago.
            yield saying.event(saying.refusal(error))
        yield saying.DONE


async def _refuse(_: Request, error: Exception) -> Response:
    """An error in the words of the API."""
    if isinstance(error, HTTPException):
        return JSONResponse(saying.refusal(error.detail), error.status_code)
    status = 503 if isinstance(error, ClosedError) else 400
    return JSONResponse(saying.refusal(error), status)
