"""`mirror-edge generate`: one prompt, one answer."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mirror_edge.apps import options
from mirror_edge.apps.groups import spread

if TYPE_CHECKING:
    from mirror_edge.result import Chunk, Prompt, Result
    from mirror_edge.stats import Stats
    from mirror_edge.text import Message


Words = Annotated[
    list[str],
    typer.Argument(
        metavar="[BUNDLE] PROMPT",
        help="Bundle folder (default: the demo pair) and the prompt; - reads the prompt from "
        "standard input.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum tokens of the answer.")]
Raw = Annotated[
    bool, typer.Option("--raw", help="Continue the prompt verbatim, without the chat template.")
]
System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]


_PATHS = ("./", "../", "/", "~/", ".\\", "..\\")


class Question(NamedTuple):
    """What the arguments ask."""

    bundle: str | None
    prompt: Prompt
    variables: dict[str, Any]
    """Of the chat template."""


@spread
def generate_command(
    words: Words,
    *,
    mode: options.Mode = "auto",
    sampling: options.SamplingOptions,
    max_new_tokens: MaxNewTokens = 256,
    stop: options.Stop = None,
    form: options.GrammarOptions,
    speculation: options.SpeculationOptions,
    raw: Raw = False,
    system: System = None,
    template: options.Template = None,
    devices: options.DeviceOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with statistics.")
    ] = False,
) -> None:
    """Answer one prompt."""
    asked = question(words, raw=raw, system=system, template=template)
    how, plan, grammar = sampling.checked(), speculation.checked(mode), form.checked()
    with devices.load(asked.bundle) as model:
        result = model.generate(
            asked.prompt,
            max_new_tokens=max_new_tokens,
            sampling=how,
            speculation=plan,
            stop=stop or (),
            grammar=grammar,
            template=asked.variables,
            on_chunk=None if as_json else _show,
        )
    if as_json:
        typer.echo(json.dumps(as_object(result)))
    else:
        typer.echo()
        typer.echo(summary(result.mode, result.stats), err=True)


def question(
    words: list[str], *, raw: bool, system: str | None, template: list[str] | None
) -> Question:
    """The arguments put together.

    Raises:
        OptionError: for arguments that do not go together.
    """
    from mirror_edge.bundle import MANIFEST
    from mirror_edge.errors import OptionError

    if len(words) > 2:
        raise OptionError(
            f"there are {len(words)} arguments; give the prompt, or a bundle and the prompt, "
            "each in quotes."
        )
    # Not a method of Path: a long prompt is no name of a file.
    if len(words) == 1 and os.path.isfile(os.path.join(words[0], MANIFEST)):  # noqa: PTH113, PTH118
        raise OptionError(f"{words[0]} is a bundle, and there is no prompt; give one after it.")
    if len(words) == 1 and words[0].startswith(_PATHS) and not words[0].split()[1:]:
        raise OptionError(
            f"no bundle at {words[0]}. Give a bundle folder and a prompt, or pass the prompt on "
            "standard input (-)."
        )
    prompt = _standard_input() if words[-1] == "-" else words[-1]
    if raw and (system is not None or template):
        option = "--template" if system is None else "--system"
        raise OptionError(f"{option} needs the chat template, which --raw skips.")
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


def summary(mode: str, answered: Stats) -> str:
    """One line of figures."""
    stats = answered.as_dict()
    parts = [f"mode {mode}", f"{stats['generated_tokens']} tokens"]
    if stats["tokens_per_second"] is not None:
        parts.append(f"{stats['tokens_per_second']:.0f} tokens/s")
    if stats["tokens_per_step"] is not None:
        parts.append(f"{stats['tokens_per_step']:.2f} tokens per step")
    if stats["acceptance_rate"] is not None:
        parts.append(f"{stats['acceptance_rate']:.0%} of the draft accepted")
    if stats["hit_rate"] is not None:
        parts.append(f"{stats['hit_rate']:.0%} hits")
    if stats["overlap_ratio"] is not None:
        parts.append(f"{stats['overlap_ratio']:.0%} of the rollout overlapped")
    if stats["draft_losses"]:
        parts.append(f"draft lost {len(stats['draft_losses'])}×")
    if stats["draft_lapses"]:
        parts.append(f"draft late {stats['draft_lapses']}×")
    return f"[{', '.join(parts)}]"
