"""How well target, exit head and draft of a bundle agree, along the target's own answers.

``python -P -m mirror_edge.apps.agreement [BUNDLE] [--prompts FILE] [--json]`` answers every prompt
at every temperature and prints:

- acceptance per token: accepted draft tokens over judged ones, where a step judges the tokens that
  it accepts and the first that it does not;
- tokens per step;
- how often the draft predicts the target's token at the positions of the answers: with the shared
  noise, greedily, and as an independent sample; and the most that any pairing of samples allows;
- coverage Ω_κ: how often the target's token is among the exit head's κ candidates, ranked with the
  shared noise, and Ω_κ without;
- hit rate: how often the outcome of a step is among its R most likely roots.

The first token of an answer comes from the prompt alone and is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirror_edge.apps import options, program
from mirror_edge.apps.record import BUDGETS, DEPTHS
from mirror_edge.errors import ContextError, DataError

if TYPE_CHECKING:
    from mirror_edge.answer import Decoder
    from mirror_edge.bundle import Bundle
    from mirror_edge.protocols import DraftGraph

__all__ = ["PROMPTS", "agreement", "lines", "opened"]

PROMPTS = (
    "Tell me about a gardener who talks to her roses.",
    "Why do we have weekends?",
    "Write a short letter to a friend who has moved away.",
    "What should I pack for a walk in the hills?",
    "Describe a kitchen early in the morning.",
    "Give me three words that mean cold.",
    "How does a kettle know when the water boils?",
    "Write a story about a boy and a very slow train.",
    "What is 27 + 15?",
    "Explain to a child why the sea is salty.",
    "Write four lines about the moon over a harbour.",
    "Which is better for a flat, a cat or a dog?",
    "Tell a story in which somebody finds an old map.",
    "What do bees do in winter?",
    "Write a dialogue between a cook and a hungry guest.",
    "How can I learn the names of the trees?",
    "Summarize: The shop was closed for a week. When it opened again, everybody came.",
    "Write an advertisement for an umbrella.",
    "What did people do in the evening before there was light at night?",
    "Tell me something nice about Mondays.",
)
_TABLE = (
    ("tokens", "tokens"),
    ("judged draft tokens", "judged"),
    ("acceptance per token", "acceptance_per_token"),
    ("tokens per step", "tokens_per_step"),
    ("draft predicts it, shared noise", "draft_says_it", "shared_noise"),
    ("  greedily", "draft_says_it", "greedy"),
    ("  as an independent sample", "draft_says_it", "independent"),
    ("  at most, however paired", "draft_says_it", "at_most"),
    *((f"coverage Ω_{k}", "coverage", str(k)) for k in DEPTHS),
    (f"  Ω_{DEPTHS[-1]} without noise", "coverage_without_noise", str(DEPTHS[-1])),
    *((f"hit rate, R={budget or 'all'}", "hit_rate", str(budget or "all")) for budget in BUDGETS),
)
"""The rows: a label, and where the figures have its value."""


def agreement(
    bundle: options.Bundle = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one prompt per line (default: twenty simple ones)."),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Sampling temperature; repeatable (default: 0 and 1)."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Maximum tokens per answer.")] = 128,
    window: Annotated[int, typer.Option(help="γ: draft tokens per step.")] = 7,
    candidates: Annotated[
        int, typer.Option(help="κ: outcomes considered per window position.")
    ] = 8,
    seed: options.Seed = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads for target and draft, each.")
    ] = 1,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Continue the prompts verbatim, without the chat template."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how well target, exit head and draft agree."""
    from rich.console import Console
    from rich.progress import track

    from mirror_edge import Sampling, Speculation
    from mirror_edge import bundle as bundles
    from mirror_edge.apps.record import Record
    from mirror_edge.apps.replay import Replayer
    from mirror_edge.sampling import Sampler
    from mirror_edge.text import Text

    read = bundles.read(bundles.demo() if bundle is None else bundle)
    asked = PROMPTS if prompts is None else lines(prompts)
    text = Text.of(read)
    tokens = [
        text.encode(p) if raw else text.encode_chat([{"role": "user", "content": p}]) for p in asked
    ]
    context, longest = read.manifest.target.model.context, max(map(len, tokens))
    if longest + 2 > context:
        raise ContextError(
            f"a prompt has {longest:,} tokens and the context only {context:,}; shorten it so that "
            "there is room for an answer."
        )
    speculation = Speculation("mirror", window, candidates)
    grid = [(each, ids) for each in temperature or (0.0, 1.0) for ids in tokens]
    records: dict[float, Record] = {}
    with opened(read, threads) as (on, graph):
        replayer = Replayer(on, graph, speculation, text.eos)
        for each, ids in track(grid, description="Answering", console=Console(stderr=True)):
            sampler = Sampler(Sampling(temperature=each, seed=seed), on.target.vocabulary)
            into = records.setdefault(each, Record())
            replayer.answer(ids, new_tokens, sampler, into)
    measured = {f"{each:g}": found.figures() for each, found in records.items()}
    about = _about(read, len(asked), window, candidates, seed)
    if as_json:
        typer.echo(json.dumps(about | {"temperatures": measured}))
    else:
        _show(about, measured)


def lines(file: Path) -> list[str]:
    """The prompts in `file`, one per line.

    Raises:
        DataError: for a file that cannot be read or is empty.
    """
    try:
        asked = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Give a text file.") from error
    if not asked:
        raise DataError(f"{file}: is empty. Write one prompt per line.")
    return asked


@contextmanager
def opened(read: Bundle, threads: int) -> Iterator[tuple[Decoder, DraftGraph]]:
    """Target and draft of a bundle on the plain device, one working at a time."""
    from mirror_edge.apps import plain_pair

    place = plain_pair.plain_device(read.manifest.format), threads
    with plain_pair.opened(read, place, place) as found:
        yield found.on, found.graph


def _about(read: Bundle, prompts: int, window: int, candidates: int, seed: int) -> dict[str, Any]:
    """What was measured."""
    target, draft = read.manifest.target, read.manifest.draft
    assert draft is not None
    tokenizer = json.loads(read.file("tokenizer_config.json").read_text(encoding="utf-8"))
    return {
        "bundle": read.manifest.name,
        "precision": {"target": target.model.precision, "draft": draft.model.precision},
        "exit_layer": target.exit_layer,
        "layers": target.model.layers,
        "planted": tokenizer.get("planted"),
        "prompts": prompts,
        "window": window,
        "candidates": candidates,
        "seed": seed,
    }


def _show(about: dict[str, Any], measured: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    precision = "/".join(dict.fromkeys(about["precision"].values()))
    console.print(
        f"{about['bundle']}: {precision}, exit after layer {about['exit_layer']} of "
        f"{about['layers']}; {about['prompts']} prompts, γ={about['window']}, "
        f"κ={about['candidates']}, seed {about['seed']}",
        highlight=False,
        soft_wrap=True,
    )
    if planted := about["planted"]:
        console.print(
            "[bold]A planted pair: its language is artificial[/bold]. It was made for an agreement "
            f"of {planted['agreement']:g} and a coverage of {planted['exit_coverage']:g}.",
            highlight=False,
            soft_wrap=True,
        )
    table = Table("", *(f"T={each}" for each in measured), box=None)
    for label, *path in _TABLE:
        table.add_row(label, *(_cell(found, path) for found in measured.values()))
    console.print(table)


def _cell(found: Any, path: list[str]) -> str:
    for key in path:
        found = found[key]
    if found is None:
        return "-"
    return f"{found:,}" if isinstance(found, int) else f"{found:.3f}"


if __name__ == "__main__":
    program.run(program.single(agreement))
