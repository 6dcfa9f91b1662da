"""Which names the server answers to: a web page must not reach it under a name of its own."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mirror_edge.apps.serve.response import refusal

__all__ = ["KnownHosts"]


class KnownHosts:
    """Refuses requests to any other host, which stops DNS rebinding."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        """Names without ports; ``*`` is any, ``*.example.com`` any below that one."""
        self._app, self._hosts = app, [host.lower() for host in hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or say how it could be."""
        if scope["type"] == "http":
            name = _without_port(Headers(scope=scope).get("host", "").lower())
            if not any(_matches(name, host) for host in self._hosts):
                said = f"host is {name!r}; to accept it, start the server with --allow-host {name}."
                await JSONResponse(refusal(said), 400)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _without_port(host: str) -> str:
    return host if host.endswith("]") else host.rsplit(":", 1)[0]


def _matches(name: str, host: str) -> bool:
    return host in ("*", name) or (host.startswith("*.") and name.endswith(host[1:]))
