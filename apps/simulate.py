"""`mirror-edge simulate`: estimate performance on hardware that is described, not present."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirror_edge.apps.groups import spread
from mirror_edge.apps.scenario import AgreementOptions, AnswerOptions

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from mirror_edge.apps.plan import Outlook, Plan

__all__ = ["FileOptions", "simulate_command"]


@dataclass(frozen=True)
class FileOptions:
    """Where the timeline is written."""

    trace: Annotated[
        Path | None, typer.Option(help="Write what each lane did as a Chrome trace, in JSON.")
    ] = None
    html: Annotated[Path | None, typer.Option(help="Write it as a picture to this HTML file.")] = (
        None
    )


@spread
def simulate_command(
    profile: Annotated[
        str | None,
        typer.Argument(help="A profile's name or file; omit to list the built-in profiles."),
    ] = None,
    *,
    agreement: AgreementOptions,
    answer: AnswerOptions,
    files: FileOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Simulate the modes and their settings: the real scheduler on a virtual clock."""
    from mirror_edge.apps import output
    from mirror_edge.runtimes.profile import read, shipped

    if profile is None:
        names = {name: read(name).name for name in shipped()}
        typer.echo(json.dumps(names) if as_json else _listed(names))
        return
    output.check(files.trace, files.html)
    plan = answer.plan(read(profile), agreement)
    table, swept = _simulated(plan)
    if files != FileOptions():
        _draw(plan, files)
    about = _about(plan, agreement)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "simulated": True,
                    **about,
                    "modes": {one.setting: vars(one) for one in table},
                    "sweeps": {name: [vars(one) for one in all_] for name, all_ in swept.items()},
                }
            )
        )
    else:
        _show(plan, about, table, swept)


def _listed(names: dict[str, str]) -> str:
    width = max(map(len, names))
    return "\n".join(f"{name:{width}}  {about}" for name, about in names.items())


def _simulated(plan: Plan) -> tuple[list[Outlook], dict[str, list[Outlook]]]:
    from mirror_edge.apps.plan import modes, runs, sweeps
    from mirror_edge.apps.progress import stages

    with stages() as show:
        finished, total = 0, runs(plan)

        def done() -> None:
            nonlocal finished
            finished += 1
            show("Simulating", finished / total)

        return list(modes(plan, done)), sweeps(plan, done)


def _draw(plan: Plan, files: FileOptions) -> None:
    """Write the timeline of mode `mirror`."""
    from mirror_edge.apps.timeline import Timeline
    from mirror_edge.apps.trace import write
    from mirror_edge.trace import Trace

    kept = (recorded := Trace()).keep()
    stats = plan.run("mirror", recorded)
    recorded.take()
    title = f"{plan.profile.name}, simulated"
    write(Timeline.of(kept, stats.steps), stats, title, files.trace, files.html)


def _about(plan: Plan, agreement: AgreementOptions) -> dict[str, Any]:
    """What was simulated, and where its figures are from."""
    return {
        "profile": plan.profile.name,
        "settings": {
            "window": plan.window,
            "candidates": plan.candidates,
            "branches": plan.branches,
            "streams": list(plan.profile.text.streams),
            "head_start": plan.head_start,
            "prompt_tokens": plan.prompt_tokens,
            "new_tokens": plan.new_tokens,
            **agreement.about(plan.profile),
        },
        "sources": [vars(source) for source in plan.profile.sources],
    }


def _show(
    plan: Plan, about: dict[str, Any], table: list[Outlook], swept: dict[str, list[Outlook]]
) -> None:
    from rich.console import Console

    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(f"[bold]{plan.profile.name}[/bold]: simulated, not measured.")
    for source in plan.profile.sources:
        where = f" ({source.url})" if source.url else ""
        say(f"  {', '.join(source.figures)}: {source.kind}. {source.how}{where}")
    say(
        ", ".join(
            f"{name.replace('_', ' ')} {'all' if value is None else value}"
            for name, value in about["settings"].items()
        )
    )
    alone = table[0].tokens_per_second
    console.print()
    console.print(_table("mode", table, alone))
    console.print()
    for name, outlooks in swept.items():
        best = max(outlooks, key=lambda one: one.tokens_per_second)
        console.print(_table(name, outlooks, alone, best))
        console.print()
    say(
        "Below the modes: mode mirror with one setting varied at a time; best in bold. "
        "Times are per step."
    )


def _table(
    name: str, outlooks: list[Outlook], alone: float, best: Outlook | None = None
) -> RichTable:
    from rich.table import Table

    table = Table(box=None, header_style="none", padding=(0, 1, 0, 0))
    table.add_column(name, no_wrap=True, min_width=16)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for one in outlooks:
        times = (one.step, one.prefix, one.exit, one.suffix, one.draft, one.host)
        table.add_row(
            one.setting,
            f"{one.tokens_per_second:.1f}",
            f"{one.tokens_per_second / alone:.2f}",
            f"{one.tokens_per_step:.2f}",
            "" if one.hit_rate is None else f"{one.hit_rate:.0%}",
            *(f"{ms:.1f}" if ms >= 100.0 else f"{ms:.2f}" for ms in times),
            style="bold" if one is best else None,
        )
    return table


_COLUMNS = (
    "tok/s",
    "/ ar",
    "tok/step",
    "hits",
    "ms =",
    "prefix",
    "exit",
    "suffix",
    "draft",
    "host",
)
