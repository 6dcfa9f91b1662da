"""What the draft's streams gain: forwards and time per rollout, with and without them.

``python -P -m mirror_edge.apps.rollouts [BUNDLE] [--prompts FILE] [--json]`` has the target answer
every prompt, and then walks along each answer as mode `mirror` does. At every step it rolls out the
one branch that is drafted after a miss, and those of the R most likely outcomes; it does so with
0 to s streams, and with siblings of the first guess (s+11: eleven), at the same positions. It
prints for each, for the single branch and for the R:

- forwards per rollout (the slowest branch decides), and tokens that a branch gains per forward;
- milliseconds per rollout, the median, on one thread.

The branches must be the same with any number of streams; those that differ from the ones without
are counted. In float32 there should be none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mirror_edge.apps import options, program
from mirror_edge.apps.agreement import PROMPTS, lines, opened
from mirror_edge.errors import OptionError

__all__ = ["rollouts"]


def rollouts(
    bundle: options.Bundle = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one prompt per line (default: twenty simple ones)."),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Sampling temperature; repeatable (default: 0 and 1)."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Maximum tokens per answer.")] = 64,
    window: Annotated[int, typer.Option(min=1, help="γ: tokens per branch.")] = 7,
    candidates: Annotated[
        int, typer.Option(min=1, help="κ: outcomes considered per window position.")
    ] = 4,
    branches: Annotated[int, typer.Option(min=1, help="R: branches per rollout.")] = 8,
    siblings: Annotated[int, typer.Option(min=0, help="Siblings of a stream's first guess.")] = 11,
    seed: options.Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure rollouts with and without the draft's streams."""
    from rich.console import Console
    from rich.progress import track

    from mirror_edge import Sampling, Speculation, load
    from mirror_edge import bundle as bundles
    from mirror_edge.apps.walk import Record, Walk
    from mirror_edge.growth import Guesses
    from mirror_edge.policy import resolve
    from mirror_edge.rollout import ways
    from mirror_edge.sampling import Sampler
    from mirror_edge.text import Message

    read = bundles.read(bundles.demo() if bundle is None else bundle)
    if read.manifest.draft is None:
        raise OptionError(f"{read.folder}: has no draft. Export the bundle with --draft.")
    plan = resolve(Speculation("mirror", window, candidates, branches), can_draft=True)
    asked = PROMPTS if prompts is None else lines(prompts)
    grid = [
        (Sampling(temperature=each, seed=seed), [Message(role="user", content=prompt)])
        for each in temperature or (0.0, 1.0)
        for prompt in asked
    ]
    texts = []
    with load(read.folder, verify=False) as model:
        for sampling, prompt in track(grid, "Answering", console=Console(stderr=True)):
            said = model.generate(
                prompt,
                max_new_tokens=new_tokens,
                sampling=sampling,
                speculation=Speculation("ar"),
            )
            before = model.tokenize(prompt)
            texts.append((sampling, [*before, *said.tokens], len(before)))
    found: dict[float, list[Record]] = {}
    streams = read.manifest.draft.streams
    ladder = ways(Guesses(streams, siblings if streams else 0))
    with opened(read, threads=1) as (on, graph):
        for sampling, text, start in track(texts, "Rolling out", console=Console(stderr=True)):
            walk = Walk(on.target, graph, plan, Sampler(sampling, on.target.vocabulary), text)
            records = found.setdefault(sampling.temperature, [Record(ahead) for ahead in ladder])
            walk.measure(max(start, 2), records)
    figures = {f"{each:g}": [one.figures(window) for one in found[each]] for each in found}
    about = {"bundle": read.manifest.name, "window": window, "branches": branches, "seed": seed}
    if as_json:
        typer.echo(json.dumps(about | {"temperatures": figures}))
    else:
        _show(about, figures)


def _show(about: dict[str, Any], figures: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{about['bundle']}: γ={about['window']}, R={about['branches']}, seed {about['seed']}",
        highlight=False,
    )
    table = Table("T", "streams", "R", "rollouts", "forwards", "tokens a forward", "ms", "differ")
    for temperature, found in figures.items():
        for of in found:
            for kind, count in (("single", 1), ("many", about["branches"])):
                cells = ["-" if of[kind][n] is None else f"{of[kind][n]:.2f}" for n in of[kind]]
                differ = f"{of['differing']} of {of['branches']}" if kind == "many" else ""
                ahead = (
                    f"{of['streams']}+{of['siblings']}" if of["siblings"] else str(of["streams"])
                )
                table.add_row(temperature, ahead, str(count), str(of["rollouts"]), *cells, differ)
    console.print(table)


if __name__ == "__main__":
    program.run(program.single(rollouts))
