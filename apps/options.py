"""The options that commands share, and what they become."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from mirror_edge import Model, Sampling
    from mirror_edge.policy import Speculation

Bundle = Annotated[Path | None, typer.Argument(help="A bundle's folder; left out: the demo pair.")]
Mode = Annotated[
    str, typer.Option(help="auto, ar (target only), sd (draft, then verify) or mirror (at once).")
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that make up this share.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1, said tokens become less likely.")]
Seed = Annotated[int, typer.Option(help="One seed, one text, in every mode.")]
Template = Annotated[
    list[str] | None,
    typer.Option(help="A variable of the chat template, NAME=VALUE with a JSON value; repeatable."),
]
Stop = Annotated[
    list[str] | None, typer.Option(help="End the answer before this text; repeatable.")
]
Window = Annotated[int | None, typer.Option(help="γ: draft tokens a step; auto chooses it.")]
Candidates = Annotated[int | None, typer.Option(help="κ: outcomes prepared for at each place.")]
Branches = Annotated[
    str | None, typer.Option(help="R: outcomes prepared for in all, or 'all'; auto chooses it.")
]
Drafter = Annotated[
    str | None,
    typer.Option(help="model (the bundle's draft) or ngram (look-up); auto takes what pays."),
]
ExitHead = Annotated[
    str | None,
    typer.Option(help="target or draft: on whose device the exit head runs; auto chooses it."),
]
HeadStart = Annotated[
    bool | None,
    typer.Option(
        "--head-start/--no-head-start",
        help="Have the draft begin while the target's prefix runs. By default where it has a "
        "device of its own.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Run the target at one width, so that rounding is equal in every mode."
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto (the fastest, by trying), cpu, cpu:0-3 for these cores only, or one of those "
        "that `mirror-edge devices` lists."
    ),
]
DraftProcess = Annotated[
    bool | None,
    typer.Option(
        "--draft-process/--no-draft-process",
        help="Keep the draft in a child process, so that an answer survives it. By default where "
        "its device calls for that.",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        help="Tokens that prompt and answer have together at most; by default as many as the model "
        "can, or as there is memory for."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="On the CPU; by default its cores, but for one beside another kind of device, and for "
        "a draft no more than its size is worth.",
    ),
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
    """What is on, beside the answer."""
    typer.echo(line, err=True)


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen."""

    temperature: Temperature = 0.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    seed: Seed = 0

    def checked(self) -> Sampling:
        """As the library takes it.

        Raises:
            OptionError: naming the option that cannot be honoured.
        """
        from mirror_edge import Sampling

        return Sampling(**vars(self))


@dataclass(frozen=True)
class SpeculationOptions:
    """How much is guessed, and by whom."""

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
    """Where the models run, and how much of a text they hold."""

    target_device: Device = "auto"
    draft_device: Device = "auto"
    target_threads: Threads = None
    draft_threads: Threads = None
    draft_process: DraftProcess = None
    context: Context = None

    def load(
        self, bundle: str | Path | None, on_progress: Callable[[str], None] | None = tell
    ) -> Model:
        """A bundle on these devices; see `mirror_edge.load`."""
        from mirror_edge import load

        return load(bundle, **vars(self), on_progress=on_progress)
