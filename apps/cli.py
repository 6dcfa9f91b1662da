"""The command `mirror-edge`."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from mirror_edge.apps import cache, program
from mirror_edge.apps.bench.command import bench_command
from mirror_edge.apps.chat import chat_command
from mirror_edge.apps.coverage import coverage_command
from mirror_edge.apps.devices import devices_command
from mirror_edge.apps.distill import distill_command
from mirror_edge.apps.export import export_command
from mirror_edge.apps.generate import generate_command
from mirror_edge.apps.inspect import inspect_command
from mirror_edge.apps.serve.command import serve_command
from mirror_edge.apps.simulate import simulate_command
from mirror_edge.apps.synth import synth_command
from mirror_edge.apps.trace import trace_command

app = typer.Typer(
    name="mirror-edge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mirror-edge {metadata.version('mirror-edge')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Local chat models on two devices at once, without changing a word."""


app.command("chat")(chat_command)
app.command("generate")(generate_command)
app.command("serve")(serve_command)
app.command("export")(export_command)
app.command("distill")(distill_command)
app.command("inspect")(inspect_command)
app.command("coverage")(coverage_command)
app.command("devices")(devices_command)
app.command("synth")(synth_command)
app.command("bench")(bench_command)
app.command("trace")(trace_command)
app.command("simulate")(simulate_command)
app.add_typer(cache.app, name="cache")


if __name__ == "__main__":
    program.run(app)
