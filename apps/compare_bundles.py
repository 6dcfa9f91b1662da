"""Several bundles of one pair, side by side: what rounding and the runtime do to the answers.

``python -P -m mirror_edge.apps.compare_bundles REFERENCE BUNDLE... --prompts FILE`` answers every
prompt by all of them in mode `mirror`. Core ML bundles run on their devices on macOS, and elsewhere
in the evaluator.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirror_edge.apps import program
from mirror_edge.errors import DataError

if TYPE_CHECKING:
    from mirror_edge import Model
    from mirror_edge.api import Result


def compare(
    bundles: Annotated[list[Path], typer.Argument(help="The first is what others are held to.")],
    prompts: Annotated[Path, typer.Option(help="One prompt a line.")],
    limit: Annotated[int, typer.Option(help="Take so many of the prompts.")] = 5,
    new_tokens: int = 32,
    seed: int = 0,
) -> None:
    """Print for every bundle and temperature how its answers differ, and how its draft does."""
    from rich.console import Console
    from rich.progress import track

    from mirror_edge import Sampling

    try:
        asked = [line for line in prompts.read_text(encoding="utf-8").splitlines() if line][:limit]
    except OSError as error:
        raise DataError(f"{prompts}: cannot be read ({error.strerror}).") from error
    rows: list[dict[str, Any]] = []
    expected: dict[float, list[Result]] = {}
    for bundle in bundles:
        with _open(bundle) as model:
            spec = model.bundle.manifest
            for temperature in (0.0, 1.0):
                sampling = Sampling(temperature=temperature, seed=seed)
                shown = track(asked, description=str(bundle), console=Console(stderr=True))
                found = [_answer(model, prompt, sampling, new_tokens) for prompt in shown]
                wanted = expected.setdefault(temperature, found)
                rows.append(
                    {
                        "bundle": str(bundle),
                        "format": spec.format,
                        "precision": spec.target.model.precision,
                        "temperature": temperature,
                        "tokens": sum(len(result.tokens) for result in found),
                        "first_difference_at": [
                            _difference(one.tokens, other.tokens)
                            for one, other in zip(wanted, found, strict=True)
                        ],
                        **_rates(found),
                    }
                )
    typer.echo(json.dumps(rows, indent=2))


def _open(bundle: Path) -> Model:
    from mirror_edge import bundle as bundles
    from mirror_edge import load

    coreml = bundles.read(bundle, verify=False).manifest.format == "coreml"
    device = "coreml:evaluator" if coreml and sys.platform != "darwin" else "auto"
    return load(bundle, target_device=device, draft_device=device)


def _answer(model: Model, prompt: str, sampling: Any, new_tokens: int) -> Result:
    from mirror_edge import Speculation

    return model.generate(
        [{"role": "user", "content": prompt}],
        max_new_tokens=new_tokens,
        sampling=sampling,
        speculation=Speculation(mode="mirror"),
    )


def _difference(one: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """How many tokens two answers share from their start; None if they are the same."""
    if one == other:
        return None
    same = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(same) if a != b), min(len(one), len(other)))


def _rates(results: list[Result]) -> dict[str, float | None]:
    """Acceptance and hit rate over all steps of all answers."""
    steps = [step for result in results for step in result.stats.steps]
    proposed = sum(step.proposed for step in steps)
    hits = [step.hit for step in steps if step.hit is not None]
    return {
        "acceptance": round(sum(step.accepted for step in steps) / proposed, 3)
        if proposed
        else None,
        "hit_rate": round(sum(hits) / len(hits), 3) if hits else None,
    }


if __name__ == "__main__":
    program.run(program.single(compare))
