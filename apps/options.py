"""The options that commands share, and what they become."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from mirror_edge import Grammar, Model, Sampling
    from mirror_edge.policy import Speculation

Bundle = Annotated[Path | None, typer.Argument(help="Bundle folder (default: the demo pair).")]
Mode = Annotated[
    str,
    typer.Option(help="auto, ar (target only), sd (draft, then verify) or mirror (both at once)."),
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Keep the k most likely tokens; 0 keeps all.")]
TopP = Annotated[
    float, typer.Option(help="Keep the most likely tokens that add up to this probability.")
]
MinP = Annotated[
    float, typer.Option(help="Drop tokens below this share of the most likely one's probability.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1, tokens already used become less likely.")
]
PresencePenalty = Annotated[
    float, typer.Option(help="Taken off the logit of every token that the answer already has.")
]
FrequencyPenalty = Annotated[
    float, typer.Option(help="The same, as many times as the answer has the token.")
]
Seed = Annotated[int, typer.Option(help="One seed, one text, in every mode.")]
Template = Annotated[
    list[str] | None,
    typer.Option(help="A variable of the chat template, NAME=VALUE with a JSON value; repeatable."),
]
Stop = Annotated[
    list[str] | None, typer.Option(help="End the answer before this text; repeatable.")
]
JsonSchema = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|SCHEMA", help="Answer in JSON that fits this JSON schema ({} for any JSON)."
    ),
]
GrammarFile = Annotated[
    Path | None,
    typer.Option("--grammar", help="Answer in this form: a file in llama.cpp's GBNF, or in Lark."),
]
Window = Annotated[int | None, typer.Option(help="γ: draft tokens per step (auto chooses).")]
Candidates = Annotated[
    int | None, typer.Option(help="κ: outcomes considered per window position (auto: 8).")
]
Branches = Annotated[
    str | None,
    typer.Option(help="R: total outcomes prepared for, or 'all' (auto chooses)."),
]
Drafter = Annotated[
    str | None,
    typer.Option(
        help="model (the bundle's draft) or ngram (look-up); auto uses whichever is faster."
    ),
]
ExitHead = Annotated[
    str | None,
    typer.Option(help="target or draft: the device that runs the exit head (auto chooses)."),
]
HeadStart = Annotated[
    bool | None,
    typer.Option(
        "--head-start/--no-head-start",
        help="Start drafting while the target's prefix runs (default: on if the draft has its own "
        "device).",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Run the target at one width, so that rounding is identical in every mode.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto (the fastest, by measurement), cpu, cpu:0-3 for these cores only, or a device "
        "that `mirror-edge devices` lists."
    ),
]
DraftProcess = Annotated[
    bool | None,
    typer.Option(
        "--draft-process/--no-draft-process",
        help="Run the draft in a child process, so that a driver crash cannot end the answer "
        "(default: depends on the device).",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        help="Maximum tokens of prompt and answer together (default: the model's limit, or what "
        "fits in memory)."
    ),
]
TargetThreads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="CPU threads for the target (default: all its cores, minus one if the draft uses "
        "another kind of device).",
    ),
]
DraftThreads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads for the draft (default: as many as its size justifies)."),
]


def template_variables(asked: list[str] | None) -> dict[str, Any]:
    """The `--template` options as keyword arguments of the chat template.

    Raises:
        OptionError: for one without a name.
    """
    from mirror_edge.errors import OptionError

    variables: dict[str, Any] = {}
    for option in asked or ():
        name, equals, value = option.partition("=")
        if not name or not equals:
            raise OptionError(f"--template is {option!r}; write NAME=VALUE.")
        try:
            variables[name] = json.loads(value)
        except ValueError:
            variables[name] = value
    return variables


def tell(line: str) -> None:
    """A note for the user, on standard error."""
    typer.echo(line, err=True)


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are sampled."""

    temperature: Temperature = 0.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: PresencePenalty = 0.0
    frequency_penalty: FrequencyPenalty = 0.0
    seed: Seed = 0

    def checked(self) -> Sampling:
        """As the library takes it.

        Raises:
            OptionError: naming the option that cannot be honoured.
        """
        from mirror_edge import Sampling

        return Sampling(**vars(self))


@dataclass(frozen=True)
class GrammarOptions:
    """What form the answer must have."""

    json_schema: JsonSchema = None
    grammar: GrammarFile = None

    def checked(self) -> Grammar | None:
        """As the library takes it.

        Raises:
            OptionError: for both options at once, or a file that cannot be read.
        """
        from mirror_edge import Grammar
        from mirror_edge.errors import OptionError

        if self.json_schema is not None and self.grammar is not None:
            raise OptionError("--json-schema and --grammar exclude each other; give one of them.")
        if self.json_schema is not None:
            given = self.json_schema
            inline = given.lstrip().startswith("{")
            return Grammar.json(given if inline else _read(Path(given), "--json-schema"))
        return None if self.grammar is None else Grammar.gbnf(_read(self.grammar, "--grammar"))


def _read(path: Path, option: str) -> str:
    from mirror_edge.errors import OptionError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionError(f"{option} {path}: cannot be read ({error}).") from None


@dataclass(frozen=True)
class SpeculationOptions:
    """How much to speculate, and with which drafter."""

    window: Window = None
    candidates: Candidates = None
    branches: Branches = None
    drafter: Drafter = None
    exit_head: ExitHead = None
    head_start: HeadStart = None
    strict: Strict = False

    def checked(self, mode: str) -> Speculation:
        """As the library takes it.

        Raises:
            OptionError: naming the option that cannot be honoured.
        """
        from mirror_edge.errors import OptionError
        from mirror_edge.policy import Speculation

        if self.branches is None or self.branches == "all":
            roots: int | Literal["all"] | None = self.branches  # type: ignore[assignment]
        elif self.branches.isdecimal():
            roots = int(self.branches)
        else:
            raise OptionError(f"--branches is {self.branches!r}; it must be a number or 'all'.")
        return Speculation(
            mode=mode,  # type: ignore[arg-type]
            window=self.window,
            candidates=self.candidates,
            branches=roots,
            drafter=self.drafter,  # type: ignore[arg-type]
            exit_head=self.exit_head,  # type: ignore[arg-type]
            head_start=self.head_start,
            strict=self.strict,
        )


@dataclass(frozen=True)
class DeviceOptions:
    """Where the models run, and how much context they have."""

    target_device: Device = "auto"
    draft_device: Device = "auto"
    target_threads: TargetThreads = None
    draft_threads: DraftThreads = None
    draft_process: DraftProcess = None
    context: Context = None

    def load(
        self, bundle: str | Path | None, on_progress: Callable[[str], None] | None = tell
    ) -> Model:
        """A bundle on these devices; see `mirror_edge.load`."""
        from mirror_edge import load

        return load(bundle, **vars(self), on_progress=on_progress)
