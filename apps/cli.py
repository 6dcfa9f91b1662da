"""The command `mirror-edge`."""

from __future__ import annotations

import sys

import typer

from mirror_edge.apps.chat import chat_command
from mirror_edge.apps.export import export_command
from mirror_edge.apps.generate import generate_command
from mirror_edge.apps.inspect import inspect_command
from mirror_edge.errors import MirrorEdgeError

app = typer.Typer(
    name="mirror-edge",
    help="Local chat models on two devices at once, without changing a word.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("chat")(chat_command)
app.command("generate")(generate_command)
app.command("export")(export_command)
app.command("inspect")(inspect_command)


def main() -> None:
    """Run the command; a known error is one line and exit code 2, Ctrl-C is 130."""
    try:
        app()
    except MirrorEdgeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
