"""`mirror-edge serve`: a model for the programs that speak the OpenAI API."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from mirror_edge.apps import options
from mirror_edge.apps.chat import ChatSampling
from mirror_edge.apps.generate import summary
from mirror_edge.apps.groups import spread
from mirror_edge.apps.serve.telling import Teller

if TYPE_CHECKING:
    from mirror_edge.apps.serve.saying import Said

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class ServeSampling(ChatSampling):
    """What holds where a request says nothing."""

    seed: Annotated[
        int | None, typer.Option(help="Of every answer. By default each has its own, and names it.")
    ] = None  # type: ignore[assignment]


@spread
def serve_command(
    bundle: options.Bundle = None,
    *,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Let web pages from here ask, such as http://localhost:3000; repeatable."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name that this server is known by, as to a proxy; repeatable."),
    ] = None,
    mode: options.Mode = "auto",
    sampling: ServeSampling,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="By default up to the end of the context.")
    ] = None,
    speculation: options.SpeculationOptions,
    template: options.Template = None,
    devices: options.DeviceOptions,
) -> None:
    """Answer over HTTP, by the OpenAI API: /v1/chat/completions, /v1/completions, /v1/models.

    Sampling options hold where a request has none of its own. One answer at a time; the others
    wait their turn. Ctrl-C ends.
    """
    from mirror_edge.errors import MissingExtraError

    try:
        import uvicorn

        from mirror_edge.apps.serve.asking import Defaults
        from mirror_edge.apps.serve.server import application
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serve needs {error.name}: pip install 'mirror-edge[serve]'."
        ) from error
    replace(sampling, seed=sampling.seed or 0).checked()
    plan, variables = speculation.checked(mode), options.template_variables(template)
    defaults = Defaults(vars(sampling), plan, variables, max_new_tokens)
    names = allow_host or []

    teller = Teller()

    def told(said: Said) -> None:
        teller.tell(summary(mode, said.stats))

    with _listen(host, port) as listening, devices.load(bundle) as model:
        # What no request could be answered with is refused now.
        model.astream("Hello", speculation=plan)
        if variables:
            model.tokenize([{"role": "user", "content": "Hello"}], variables)
        at = f"[{host}]" if ":" in host else host
        served = application(
            model,
            defaults,
            hosts=[*_LOCAL, at, *names] if names or _is_local(listening) else ["*"],
            origins=allow_origin or (),
            on_answer=told,
        )

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                model.close()  # Answers under way end with an error that says so.
                await super().shutdown(sockets)

        options.tell(
            f"{model.bundle.manifest.name} at http://{at}:{listening.getsockname()[1]}/v1. "
            "Ctrl-C ends."
        )
        with suppress(KeyboardInterrupt):  # The way to end it, and no accident.
            Server(
                uvicorn.Config(
                    served,
                    ws="none",
                    access_log=False,
                    log_level="error",
                    timeout_graceful_shutdown=1,
                )
            ).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """The socket, opened before the model, which takes longer to load than this to fail."""
    from mirror_edge.errors import OptionError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OptionError(
            f"cannot listen at --host {host} --port {port} ({error.strerror}); choose another."
        ) from error


def _is_local(listening: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    address = ipaddress.ip_address(listening.getsockname()[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
