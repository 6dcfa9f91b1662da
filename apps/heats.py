"""Heats: settings answer one prompt in turn, so that ratios are taken within one heat.

They are kept in a file of JSON lines: a first line that says what was measured, then one heat per
line. An interrupted run continues where it stopped.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mirror_edge.errors import DataError, OptionError

if TYPE_CHECKING:
    from mirror_edge.stats import StepRecord

__all__ = ["Answered", "Heat", "Log", "Part", "law", "quartiles", "ratios"]

Part = Literal["grid", "final"]


@dataclass(frozen=True)
class Answered:
    """One setting's answer. Times are seconds."""

    tokens: int
    """After the first one."""
    seconds: float
    """In which these were generated."""
    same: bool
    """Whether it equals the answer of the heat's first setting, token by token."""
    stepped: float
    """Of all steps but the first, which waits for the draft to read the prompt."""
    law: float
    """What these should take by the law of the step, without hand-overs and the host."""

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Heat:
    """Answers of several settings to one prompt, in turn."""

    part: Part
    number: int
    answers: dict[str, Answered]


def law(steps: Sequence[StepRecord]) -> float:
    """Seconds of prefix, exit head, the longer of suffix and rollout, and the fresh draft before.

    On the draft's device the exit head runs before the rollout. The rollout counts where its
    branch was wanted: after a miss it is dropped. By how much it outlasts the suffix is taken from
    steps that did not wait: after a miss, a step's record also holds the rest of the dropped
    rollout.
    """
    hits = [step for step in steps if step.hit]
    longer = [step.longer for step in hits if not step.waited]
    alone = sum(step.serial for step in steps)
    return alone + (len(hits) * statistics.fmean(longer) if longer else 0.0)


def ratios(heats: Iterable[Heat], one: str, other: str) -> list[float]:
    """How much faster `one` was than `other`, heat by heat."""
    both = [heat.answers for heat in heats if one in heat.answers and other in heat.answers]
    return [answers[one].speed / answers[other].speed for answers in both]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


@dataclass
class Log:
    """The heats so far, and their file; None keeps them in memory."""

    file: Path | None
    about: dict[str, Any]
    """What was measured."""
    heats: list[Heat] = field(default_factory=list)

    @classmethod
    def open(cls, file: Path | None, about: dict[str, Any]) -> Log:
        """Continue `file`, or begin it; a last line that was cut short by a kill is dropped.

        Raises:
            OptionError: for heats of another bundle, other devices or another grid.
            DataError: for a file that holds anything else.
        """
        log = cls(file, about)
        if file is None or not file.exists():
            return log
        try:
            content = file.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            first, *lines = whole.decode("utf-8").splitlines()
            other = json.loads(first)["about"]
            log.heats = [_heat(json.loads(line)) for line in lines]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: holds no heats ({error!r}). Name another file.") from error
        if other != json.loads(json.dumps(about)):
            differing = sorted(key for key in about if about[key] != other.get(key))
            raise OptionError(
                f"{file}: its heats are of another run ({', '.join(differing)} differ). Name "
                "another file, or run as before."
            )
        if len(whole) < len(content):
            os.truncate(file, len(whole))
        return log

    def of(self, part: Part) -> list[Heat]:
        """The heats of a part."""
        return [heat for heat in self.heats if heat.part == part]

    def add(self, heat: Heat) -> None:
        """Add a heat, and append it to the file."""
        self.heats.append(heat)
        if self.file is None:
            return
        new = not self.file.exists()
        with self.file.open("a", encoding="utf-8") as out:
            if new:
                out.write(json.dumps({"about": self.about}) + "\n")
            out.write(json.dumps(asdict(heat)) + "\n")


def _heat(raw: dict[str, Any]) -> Heat:
    answers = {name: Answered(**answer) for name, answer in raw["answers"].items()}
    return Heat(raw["part"], raw["number"], answers)
