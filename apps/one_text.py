"""How often rounding makes modes differ: the same prompts in `ar` and in the other modes.

``python -P -m mirror_edge.apps.one_text BUNDLE --prompts FILE`` counts the answers of `sd` and
`mirror` that differ from those of `ar`. In float32 and under `--strict` there should be none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mirror_edge.apps import program
from mirror_edge.apps.agreement import lines
from mirror_edge.apps.compare_bundles import difference

__all__ = ["one_text"]


def one_text(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    prompts: Annotated[Path, typer.Option(help="Text file, one prompt per line.")],
    temperatures: Annotated[
        list[float] | None,
        typer.Option(help="Sampling temperature; repeatable (default: 0 and 1)."),
    ] = None,
    windows: Annotated[
        list[int] | None, typer.Option(help="γ; repeatable (default: 1, 4 and 7).")
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.")] = 64,
    strict: Annotated[
        bool, typer.Option("--strict", help="Run both sides at one width; see `generate --strict`.")
    ] = False,
) -> None:
    """Print how many answers differ, and how many tokens came before the first difference."""
    from rich.console import Console
    from rich.progress import track

    from mirror_edge import Sampling, Speculation, load

    asked = lines(prompts)
    compared, tokens, differing = 0, 0, []
    with load(bundle) as model:
        grid = [(p, t) for p in asked for t in temperatures or (0.0, 1.0)]
        for prompt, temperature in track(
            grid, description="Comparing", console=Console(stderr=True)
        ):

            def answer(speculation: Speculation) -> tuple[int, ...]:
                return model.generate(
                    [{"role": "user", "content": prompt}],  # noqa: B023
                    max_new_tokens=new_tokens,
                    sampling=Sampling(temperature=temperature),  # noqa: B023
                    speculation=speculation,
                ).tokens

            alone = answer(Speculation(mode="ar", strict=strict))
            for window in windows or (1, 4, 7):
                for mode in ("sd", "mirror"):
                    other = answer(Speculation(mode=mode, window=window, strict=strict))
                    compared, tokens = compared + 1, tokens + len(alone)
                    if (place := difference(alone, other)) is not None:
                        differing.append(place)
    typer.echo(
        json.dumps(
            {
                "precision": model.bundle.manifest.target.model.precision,
                "strict": strict,
                "answers": compared,
                "tokens": tokens,
                "answers_that_differ": len(differing),
                "first_difference_at": sorted(differing),
            }
        )
    )


if __name__ == "__main__":
    program.run(program.single(one_text))
