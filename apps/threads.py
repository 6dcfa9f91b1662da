"""How many CPU threads are worth using for each model.

``python -P -m mirror_edge.apps.threads [BUNDLE] --threads 1+1,2+1,2+2`` loads the pair once for
each number of threads, target+draft, and has them answer in turn, in every mode that is named. It
prints tokens per second, and how much faster each is than the first of its mode: the median of the
ratios within a heat, between the quartiles. `auto` starts from what it has learned of each before.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirror_edge.apps import options, program
from mirror_edge.apps.agreement import PROMPTS
from mirror_edge.apps.heats import quartiles
from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    from mirror_edge.apps.bench.contenders import Ours

__all__ = ["threads"]


def threads(
    bundle: options.Bundle = None,
    threads: Annotated[
        str, typer.Option(help="Threads as target+draft, comma-separated.")
    ] = "1+1,2+1,2+2",
    modes: Annotated[str, typer.Option(help="Modes, comma-separated.")] = "ar,sd,mirror,auto",
    prompts: Annotated[
        int, typer.Option(min=1, max=len(PROMPTS), help="How many prompts to answer.")
    ] = 3,
    new_tokens: Annotated[int, typer.Option(min=8, help="Maximum tokens per answer.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="How often to answer them.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare numbers of threads, in turn."""
    from rich.console import Console
    from rich.progress import track

    from mirror_edge import Sampling, Speculation, load
    from mirror_edge.apps.bench import machine
    from mirror_edge.apps.bench.contenders import Ours

    counts = {name: _counts(name) for name in threads.split(",")}
    plans = {mode: Speculation(mode, drafter="model") for mode in modes.split(",")}  # type: ignore[arg-type]
    speeds: dict[str, dict[str, list[float]]] = {mode: {} for mode in plans}
    with ExitStack() as opened:
        models = {
            name: opened.enter_context(
                load(
                    bundle,
                    target_device="cpu",
                    draft_device="cpu",
                    target_threads=target,
                    draft_threads=draft,
                )
            )
            for name, (target, draft) in counts.items()
        }
        manifest = next(iter(models.values())).bundle.manifest
        # The first round does not count: costs are measured in it, and memory is touched first.
        heats = [*PROMPTS[:1], *PROMPTS[:prompts] * repeat]
        for number, prompt in enumerate(track(heats, "Answering", console=Console(stderr=True))):
            turn = number % len(models)
            for mode, plan in plans.items():
                for name in [*list(models)[turn:], *list(models)[:turn]]:
                    ours = Ours(name, models[name], plan, Sampling())
                    speeds[mode].setdefault(name, []).append(_speed(ours, prompt, new_tokens))
    found = {
        "bundle": manifest.name,
        "precision": manifest.target.model.precision,
        "machine": machine.about("cpu", "cpu"),
        "heats": prompts * repeat,
        "modes": {mode: _compared(of) for mode, of in speeds.items()},
    }
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)


def _counts(asked: str) -> tuple[int, int]:
    target, plus, draft = asked.partition("+")
    if not (plus and target.isdecimal() and draft.isdecimal()):
        raise OptionError(
            f"--threads has {asked!r}; write target+draft, such as 4+2, comma-separated."
        )
    return int(target), int(draft)


def _speed(ours: Ours, prompt: str, most: int) -> float:
    """Tokens per second after the first one."""
    ours.forget()
    said = ours.answer([{"role": "user", "content": prompt}], most)
    return max(1, len(said.tokens) - 1) / said.decode_seconds


def _compared(speeds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """By numbers of threads."""
    counted: dict[str, Sequence[float]] = {name: own[1:] for name, own in speeds.items()}
    first = next(iter(counted.values()))
    return {
        name: {
            "tokens_per_second": statistics.median(own),
            "over_first": quartiles([a / b for a, b in zip(own, first, strict=True)]),
        }
        for name, own in counted.items()
    }


def _show(found: dict[str, Any]) -> None:
    cores = found["machine"]["cores"]
    typer.echo(f"{found['bundle']}, {found['precision']}, {cores} cores, {found['heats']} heats")
    for mode, by_threads in found["modes"].items():
        for name, one in by_threads.items():
            low, median, high = one["over_first"]
            over = f"{median:.2f} ({low:.2f} to {high:.2f})"
            typer.echo(f"  {mode:8} {name:8} {one['tokens_per_second']:8.1f} tokens/s  {over}")


if __name__ == "__main__":
    program.run(program.single(threads))
