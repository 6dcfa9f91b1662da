"""`mirror-edge simulate`: what a pair would do on a machine that is described, not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from mirror_edge.apps.plan import Outlook, Plan
    from mirror_edge.runtimes.profile import Profile
    from mirror_edge.runtimes.scripts import Script

_STATED = "left out: as the profile states"


def simulate_command(
    profile: Annotated[
        str | None,
        typer.Argument(help="A profile's name or file; left out: the names of those that come."),
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help=f"How often the draft says the target's token; {_STATED}."
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help=f"How often the target's token is among the exit head's best 8; {_STATED}.",
        ),
    ] = None,
    recording: Annotated[
        Path | None, typer.Option(help="A recorded answer instead of a stated agreement.")
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, help=f"γ; {_STATED}.")] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help=f"κ; {_STATED}.")] = None,
    branches: Annotated[str | None, typer.Option(help=f"R, or 'all'; {_STATED}.")] = None,
    head_start: Annotated[
        bool, typer.Option(help="In the sweeps and the picture: one for the draft, by the prefix.")
    ] = False,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of the prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=8, help="Of the answer.")] = 768,
    seed: Annotated[int, typer.Option(help="One seed, one text.")] = 0,
    trace: Annotated[
        Path | None, typer.Option(help="Write the lanes' work as a Chrome trace, in JSON.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as a picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Simulate the modes and their settings: the real scheduler on a virtual clock."""
    from mirror_edge.runtimes.profile import read, shipped

    if profile is None:
        names = {name: read(name).name for name in shipped()}
        typer.echo(json.dumps(names) if as_json else _listed(names))
        return
    from mirror_edge.apps import output
    from mirror_edge.apps.plan import Plan
    from mirror_edge.errors import OptionError

    output.check(trace, html)
    if recording is not None and not (agreement is None and coverage is None):
        raise OptionError("--recording says how the models agree; leave out what states it.")
    if branches not in (None, "all") and not (branches.isdecimal() and int(branches) > 0):
        raise OptionError(f"--branches is {branches!r}; it must be a number from 1 up or 'all'.")
    found = read(profile)
    script, places = _script(found, agreement, coverage, recording, seed)
    if places is not None:
        prompt_tokens, new_tokens = 1, min(new_tokens, places - 1)
    plan = Plan(
        profile=found,
        script=script,
        window=window or found.window,
        candidates=candidates or found.candidates,
        branches=_budget(branches, found.branches),
        streams=len(found.text.streams),
        head_start=head_start,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )
    table, swept = _simulated(plan)
    if trace is not None or html is not None:
        _draw(plan, trace, html)
    about = _about(plan, agreement, coverage, recording)
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


def _budget(asked: str | None, stated: int | None) -> int | None:
    if asked is None:
        return stated
    return None if asked == "all" else int(asked)


def _script(
    profile: Profile,
    agreement: float | None,
    coverage: float | None,
    recording: Path | None,
    seed: int,
) -> tuple[Script, int | None]:
    """What the models say, and how many places of text there are (None: no end)."""
    from mirror_edge.runtimes.profile import coverage_law
    from mirror_edge.runtimes.recording import Recording
    from mirror_edge.runtimes.scripts import RecordedScript, StatedScript

    stated = profile.text
    if recording is not None:
        found = Recording.read(recording)
        return RecordedScript(found.draft, found.exit, stated.streams), len(found.draft)
    return (
        StatedScript(
            stated.agreement if agreement is None else agreement,
            stated.coverage if coverage is None else coverage_law(coverage),
            stated.streams,
            seed,
        ),
        None,
    )


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


def _draw(plan: Plan, trace: Path | None, html: Path | None) -> None:
    """Write the timeline of mode `mirror`."""
    from mirror_edge.apps.timeline import Timeline
    from mirror_edge.apps.trace import write
    from mirror_edge.trace import Trace

    kept = (recorded := Trace()).keep()
    stats = plan.run("mirror", recorded)
    recorded.take()
    title = f"{plan.profile.name}, simulated"
    write(Timeline.of(kept, stats.steps), stats, title, trace, html)


def _about(
    plan: Plan, agreement: float | None, coverage: float | None, recording: Path | None
) -> dict[str, Any]:
    text = plan.profile.text
    alike: dict[str, Any] = (
        {"recording": str(recording)}
        if recording is not None
        else {
            "agreement": text.agreement if agreement is None else agreement,
            "coverage": text.coverage[7] if coverage is None else coverage,
        }
    )
    return {
        "profile": plan.profile.name,
        "settings": {
            "window": plan.window,
            "candidates": plan.candidates,
            "branches": plan.branches,
            "streams": list(text.streams),
            "head_start": plan.head_start,
            "prompt_tokens": plan.prompt_tokens,
            "new_tokens": plan.new_tokens,
        }
        | alike,
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
    say("Below the modes: mode mirror with one setting changed, the best in bold. ms: of a step.")


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


_COLUMNS = ("tok/s", "/ ar", "a step", "hits", "ms =", "prefix", "exit", "suffix", "draft", "host")
