"""Options in groups: a command of typer sees every one of them, the function sees the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from mirror_edge.apps.groups import spread


@dataclass(frozen=True)
class Size:
    """Of what is made."""

    width: Annotated[int, typer.Option(min=1, help="From left to right.")] = 3
    flat: Annotated[bool, typer.Option("--flat", help="Without height.")] = False


@dataclass(frozen=True)
class Wide(Size):
    """With another default."""

    width: Annotated[int, typer.Option(help="From left to right.")] = 9


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()

    @made.command()
    @spread
    def make(
        name: str,
        *,
        before: int = 0,
        size: Size,
        other: Annotated[str, typer.Option(help="Something else.")] = "x",
    ) -> None:
        """Make it."""
        typer.echo(f"{name} {before} {size} {other}")

    return made


def test_fields_are_options_in_their_place(app: typer.Typer) -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    places = [shown.index(o) for o in ("--before", "--width", "--flat", "--other")]
    assert places == sorted(places)
    assert "From left to right." in shown
    assert "Make it." in shown


def test_the_function_gets_the_group(app: typer.Typer) -> None:
    said = CliRunner().invoke(app, ["a", "--width", "5", "--flat", "--other", "y"])
    assert said.stdout == f"a 0 {Size(5, True)} y\n"
    assert CliRunner().invoke(app, ["a"]).stdout == f"a 0 {Size()} x\n"


def test_bounds_of_a_field_hold(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["a", "--width", "0"]).exit_code == 2


def test_a_group_may_have_other_defaults() -> None:
    app = typer.Typer()

    @app.command()
    @spread
    def make(*, size: Wide) -> None:
        typer.echo(size)

    assert CliRunner().invoke(app, []).stdout == f"{Wide(9, False)}\n"
