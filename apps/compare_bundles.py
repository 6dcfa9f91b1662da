"""Several bundles of one pair, side by side: what rounding and the runtime do to the answers.

``python -P -m mirror_edge.apps.compare_bundles REFERENCE BUNDLE... --prompts FILE`` takes all of
them through the steps of mode `mirror` for every prompt, strictly one after the other, so that no
figure depends on how fast anything runs. Core ML bundles run on their devices on macOS, and
elsewhere in the evaluator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mirror_edge.apps import options, program
from mirror_edge.apps.agreement import lines, opened

__all__ = ["compare", "difference"]


def compare(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles; the first one is the reference.")],
    prompts: Annotated[Path, typer.Option(help="Text file, one prompt per line.")],
    limit: Annotated[int, typer.Option(help="Use only the first N prompts.")] = 5,
    new_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.")] = 32,
    seed: options.Seed = 0,
) -> None:
    """Print, by bundle and temperature, where its answers differ and how well its draft does."""
    from rich.console import Console
    from rich.progress import track

    from mirror_edge import Sampling, Speculation
    from mirror_edge import bundle as stored
    from mirror_edge.apps.record import Record
    from mirror_edge.apps.replay import Replayer
    from mirror_edge.sampling import Sampler
    from mirror_edge.text import Text

    asked = lines(prompts)[:limit]
    rows: list[dict[str, Any]] = []
    expected: dict[float, list[list[int]]] = {}
    for bundle in bundles:
        read = stored.read(bundle)
        text = Text.of(read)
        tokens = [text.encode_chat([{"role": "user", "content": prompt}]) for prompt in asked]
        with opened(read, threads=1) as (on, graph):
            replayer = Replayer(on, graph, Speculation("mirror"), text.eos)
            for temperature in (0.0, 1.0):
                sampler = Sampler(Sampling(temperature, seed=seed), on.target.vocabulary)
                record = Record()
                shown = track(tokens, description=str(bundle), console=Console(stderr=True))
                found = [replayer.answer(ids, new_tokens, sampler, record) for ids in shown]
                wanted = expected.setdefault(temperature, found)
                figures = record.figures()
                rows.append(
                    {
                        "bundle": str(bundle),
                        "format": read.manifest.format,
                        "precision": read.manifest.target.model.precision,
                        "temperature": temperature,
                        "tokens": sum(map(len, found)),
                        "first_difference_at": [
                            difference(one, other) for one, other in zip(wanted, found, strict=True)
                        ],
                        "acceptance_per_token": figures["acceptance_per_token"],
                        "tokens_per_step": figures["tokens_per_step"],
                        "hit_rate": figures["hit_rate"],
                    }
                )
    typer.echo(json.dumps(rows, indent=2))


def difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """How many tokens two answers share from their start; None if they are the same."""
    if one == other:
        return None
    same = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(same) if a != b), min(len(one), len(other)))


if __name__ == "__main__":
    program.run(program.single(compare))
