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
from mirror_edge.apps.serve.log import Log

if TYPE_CHECKING:
    from mirror_edge.apps.serve.response import Said

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class ServeSampling(ChatSampling):
    """Defaults for what a request does not set."""

    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed for every answer (default: a new one each time, reported in the response)."
        ),
    ] = None  # type: ignore[assignment]


@spread
def serve_command(
    bundle: options.Bundle = None,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8080,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Accept requests from web pages of this origin, such as http://localhost:3000; "
            "repeatable."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another host name to accept, such as a proxy's; repeatable."),
    ] = None,
    mode: options.Mode = "auto",
    sampling: ServeSampling,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum tokens per answer (default: up to the end of the context)."
        ),
    ] = None,
    speculation: options.SpeculationOptions,
    template: options.Template = None,
    devices: options.DeviceOptions,
) -> None:
    """Answer over HTTP, by the OpenAI API: /v1/chat/completions, /v1/completions, /v1/models.

    Sampling options are defaults for requests that do not set them. One answer at a time; the
    others wait their turn. Press Ctrl-C to stop.
    """
    from mirror_edge.errors import MissingExtraError

    try:
        from mirror_edge.apps.serve.host import Host
        from mirror_edge.apps.serve.request import Defaults
        from mirror_edge.apps.serve.server import application
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serve needs {error.name}: pip install 'mirror-edge[serve]'."
        ) from error
    replace(sampling, seed=sampling.seed or 0).checked()
    plan, variables = speculation.checked(mode), options.template_variables(template)
    defaults = Defaults(vars(sampling), plan, variables, max_new_tokens)
    names = allow_host or []

    log = Log()

    def told(said: Said) -> None:
        log.write(summary(mode, said.stats))

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

        options.tell(
            f"{model.bundle.manifest.name} at http://{at}:{listening.getsockname()[1]}/v1. "
            "Press Ctrl-C to stop."
        )
        with suppress(KeyboardInterrupt):  # The way to end it, and no accident.
            Host(served, on_end=model.close).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """The socket, opened before the model, which takes longer to load than this to fail."""
    from mirror_edge.errors import OptionError

    if not host:
        raise OptionError("--host is empty; give an address, such as 127.0.0.1.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OptionError(
            f"cannot listen on --host {host} --port {port} ({error.strerror}); choose another."
        ) from error


def _is_local(listening: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    address = ipaddress.ip_address(listening.getsockname()[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
