"""`mirror-edge generate`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mirror_edge.apps import options

if TYPE_CHECKING:
    from mirror_edge.api import Chunk, Prompt, Result
    from mirror_edge.text import Message


Words = Annotated[
    list[str],
    typer.Argument(
        metavar="[BUNDLE] PROMPT",
        help="A bundle's folder (left out: the demo pair) and the prompt; - reads it from "
        "standard input.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="End the answer after so many tokens.")]
Raw = Annotated[
    bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")
]
System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]


class Question(NamedTuple):
    """What the words and the options about them ask."""

    bundle: str | None
    prompt: Prompt
    variables: dict[str, Any]
    """Of the chat template."""


def generate_command(
    words: Words,
    mode: options.Mode = "auto",
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = 0,
    max_new_tokens: MaxNewTokens = 256,
    stop: options.Stop = None,
    window: options.Window = None,
    candidates: options.Candidates = None,
    branches: options.Branches = None,
    drafter: options.Drafter = "model",
    strict: options.Strict = False,
    raw: Raw = False,
    system: System = None,
    template: options.Template = None,
    target_device: options.Device = "auto",
    draft_device: options.Device = "auto",
    target_threads: options.Threads = None,
    draft_threads: options.Threads = None,
    draft_process: options.DraftProcess = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with statistics.")
    ] = False,
) -> None:
    """Answer one prompt."""
    from mirror_edge import Sampling, load

    asked = question(words, raw=raw, system=system, template=template)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    speculation = options.speculation(mode, window, candidates, branches, drafter, strict)

    with load(
        asked.bundle,
        target_device=target_device,
        draft_device=draft_device,
        target_threads=target_threads,
        draft_threads=draft_threads,
        draft_process=draft_process,
        on_progress=options.tell,
    ) as model:
        result = model.generate(
            asked.prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            speculation=speculation,
            stop=stop or (),
            template=asked.variables,
            on_chunk=None if as_json else _show,
        )
    if as_json:
        typer.echo(json.dumps(as_object(result)))
    else:
        typer.echo()
        typer.echo(summary(result), err=True)


def question(
    words: list[str], *, raw: bool, system: str | None, template: list[str] | None
) -> Question:
    """The arguments put together.

    Raises:
        OptionError: for arguments that do not go together.
    """
    from mirror_edge.errors import OptionError

    if len(words) > 2:
        raise OptionError(
            f"there are {len(words)} arguments; give the prompt, or a bundle and the prompt, "
            "each in quotes."
        )
    prompt = _standard_input() if words[-1] == "-" else words[-1]
    if raw and (system is not None or template):
        option = "--template" if system is None else "--system"
        raise OptionError(f"{option} needs the chat template, which --raw leaves out.")
    messages: list[Message] = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Question(
        words[0] if len(words) == 2 else None,
        prompt if raw or not prompt else messages,
        options.template_variables(template),
    )


def _standard_input() -> str:
    from mirror_edge.errors import OptionError

    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"standard input is not UTF-8 text ({error.reason}).") from error


def _show(chunk: Chunk) -> None:
    typer.echo(chunk.text, nl=False)
    sys.stdout.flush()


def as_object(result: Result) -> dict[str, Any]:
    """The answer as `--json` prints it."""
    return {
        "text": result.text,
        "tokens": list(result.tokens),
        "finish_reason": result.finish_reason,
        "mode": result.mode,
        "stats": result.stats.as_dict(),
    }


def summary(result: Result) -> str:
    """One line of figures."""
    stats = result.stats.as_dict()
    parts = [f"mode {result.mode}", f"{len(result.tokens)} tokens"]
    if stats["tokens_per_second"] is not None:
        parts.append(f"{stats['tokens_per_second']:.0f} tokens/s")
    if stats["tokens_per_step"] is not None:
        parts.append(f"{stats['tokens_per_step']:.2f} tokens a step")
    if stats["acceptance_rate"] is not None:
        parts.append(f"{stats['acceptance_rate']:.0%} of the draft accepted")
    if stats["hit_rate"] is not None:
        parts.append(f"{stats['hit_rate']:.0%} of outcomes prepared for")
    if stats["overlap_ratio"] is not None:
        parts.append(f"{stats['overlap_ratio']:.0%} of the rollout hidden")
    if stats["draft_losses"]:
        parts.append(f"draft lost {len(stats['draft_losses'])}×")
    if stats["draft_lapses"]:
        parts.append(f"draft late {stats['draft_lapses']}×")
    return f"[{', '.join(parts)}]"
