"""Plain decoding compared with ONNX Runtime GenAI: the same graph, threads and prompts, in turn.

``python -P -m mirror_edge.apps.compare_genai GENAI_FOLDER BUNDLE --context 256 --context 1000``,
where BUNDLE was exported from GENAI_FOLDER. For every prompt length it prints the time to the
first token, the tokens per second after it, and what share of these is left at longer prompts. The
two take turns, and what counts is the ratio within each pair.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mirror_edge.apps import options, program
from mirror_edge.errors import ContextError, MissingExtraError

if TYPE_CHECKING:
    from mirror_edge import Model
    from mirror_edge.apps.bench.peers import Genai

__all__ = ["compare"]

_CONTEXT = 16
_TEXT = "Once upon a time a lighthouse stood on a small island, and nobody knew who had built it. "
_ROWS = (("first_token", "first token, ms", "_ms"), ("tokens_per_second", "tokens per second", ""))
"""What is compared: its name, its label, and the unit that ends the name of a time."""


class _Answer(NamedTuple):
    tokens: tuple[int, ...]
    first_token: float
    """Seconds."""
    rate: float
    """Tokens per second after the first one."""


class _Pair(NamedTuple):
    """Two answers to one prompt, given in turn."""

    ours: _Answer
    theirs: _Answer


def compare(
    genai_folder: Annotated[Path, typer.Argument(help="A folder with genai_config.json.")],
    bundle: Annotated[Path, typer.Argument(help="The bundle exported from it.")],
    context: Annotated[
        list[int] | None,
        typer.Option(min=2, help=f"Tokens of a prompt; repeatable (default: {_CONTEXT})."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Maximum tokens per answer.")] = 128,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for each of the two.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="Pairs of answers, after one to warm up.")] = 7,
    device: options.Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare time to first token and tokens per second; medians over the pairs."""
    from rich.console import Console
    from rich.progress import track

    from mirror_edge import load

    genai = _genai(genai_folder, threads)
    found: dict[int, list[_Pair]] = {}
    with load(bundle, target_device=device, target_threads=threads) as model:
        prompts = [_prompt(model, length, new_tokens) for length in context or [_CONTEXT]]
        rounds = [(turn, prompt) for turn in range(repeat + 1) for prompt in prompts]
        for turn, prompt in track(rounds, "Answering", console=Console(stderr=True)):
            pair = _pair(genai, model, prompt, new_tokens, ours_first=turn % 2 == 0)
            if turn > 0:
                found.setdefault(len(model.tokenize(prompt)), []).append(pair)
    figures = [_figures(length, pairs) for length, pairs in found.items()]
    for row in figures[1:]:
        for name in ("ours", "genai"):
            row[name]["of_first"] = (
                row[name]["tokens_per_second"] / figures[0][name]["tokens_per_second"]
            )
    about = {"bundle": str(bundle), "threads": threads, "new_tokens": new_tokens, "repeat": repeat}
    if as_json:
        typer.echo(json.dumps(about | {"contexts": figures}))
    else:
        _show(figures)


def _prompt(model: Model, length: int, new_tokens: int) -> str:
    """A text of at most `length` tokens, and not many fewer."""
    if length + new_tokens > model.context:
        raise ContextError(
            f"--context {length}: with --new-tokens {new_tokens} it does not fit into the "
            f"context of {model.context:,} tokens. Lower one of them."
        )
    words = (_TEXT * length).split(" ")
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(model.tokenize(" ".join(words[:middle]))) <= length
        low, high = (middle, high) if fits else (low, middle - 1)
    return " ".join(words[:low])


def _pair(genai: Genai, model: Model, prompt: str, new_tokens: int, *, ours_first: bool) -> _Pair:
    ours = _ours(model, prompt, new_tokens) if ours_first else None
    genai.forget()
    said = genai.decode(model.tokenize(prompt), new_tokens)
    rate = (len(said.tokens) - 1) / said.decode_seconds
    theirs = _Answer(tuple(said.tokens), said.first_token, rate)
    return _Pair(ours or _ours(model, prompt, new_tokens), theirs)


def _ours(model: Model, prompt: str, new_tokens: int) -> _Answer:
    from mirror_edge import Speculation

    alone = Speculation(mode="ar")
    # An unrelated word overwrites the caches, so that the whole prompt is read.
    model.generate("Else", max_new_tokens=1, speculation=alone)
    result = model.generate(prompt, max_new_tokens=new_tokens, speculation=alone)
    stats = result.stats
    rate = (stats.generated_tokens - 1) / stats.decode_seconds
    return _Answer(result.tokens, stats.time_to_first_token, rate)


def _genai(folder: Path, threads: int) -> Genai:
    from mirror_edge.apps.bench.peers import Genai

    try:
        return Genai(str(folder), threads)
    except ImportError:
        raise MissingExtraError(
            "onnxruntime-genai is not installed: pip install 'mirror-edge[export]'."
        ) from None


def _figures(length: int, pairs: Sequence[_Pair]) -> dict[str, Any]:
    """Medians; ratios are taken within each pair."""

    def of(answers: Sequence[_Answer]) -> dict[str, float]:
        return {
            "first_token_ms": 1e3 * statistics.median(one.first_token for one in answers),
            "tokens_per_second": statistics.median(one.rate for one in answers),
        }

    def ratio(ratios: Sequence[float]) -> dict[str, Any]:
        return {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]}

    return {
        "context": length,
        "same_tokens": all(ours.tokens == theirs.tokens for ours, theirs in pairs),
        "ours": of([ours for ours, _ in pairs]),
        "genai": of([theirs for _, theirs in pairs]),
        "first_token_ratio": ratio([a.first_token / b.first_token for a, b in pairs]),
        "tokens_per_second_ratio": ratio([a.rate / b.rate for a, b in pairs]),
    }


def _show(figures: Sequence[dict[str, Any]]) -> None:
    for row in figures:
        same = "the same" if row["same_tokens"] else "different"
        typer.echo(f"prompt of {row['context']:,} tokens, {same} tokens in the answers")
        for name, label, unit in _ROWS:
            found = row[f"{name}_ratio"]
            low, high = found["range"]
            mine, theirs = (row[who][f"{name}{unit}"] for who in ("ours", "genai"))
            typer.echo(
                f"  {label:17} ours {mine:8.1f}, genai {theirs:8.1f}, "
                f"ratio {found['median']:.3f} ({low:.3f} to {high:.3f})"
            )
        if kept := row["ours"].get("of_first"):
            theirs = row["genai"]["of_first"]
            typer.echo(
                f"  share of the tokens/s at {figures[0]['context']:,}: ours {kept:.2f}, "
                f"genai {theirs:.2f}"
            )


if __name__ == "__main__":
    program.run(program.single(compare))
