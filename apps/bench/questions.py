"""Questions in Spec-Bench's file format: one JSON object per line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror_edge.errors import DataError

__all__ = ["SHIPPED", "Question", "choose", "read"]

SHIPPED = Path(__file__).parent / "questions.jsonl"
"""Twelve questions of our own, two of each group."""

MULTI_TURN = (
    "writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities",
)  # fmt: skip
"""MT-bench's categories, which Spec-Bench counts as one group."""


@dataclass(frozen=True)
class Question:
    """One conversation: what the user says, turn by turn."""

    line: int
    """In its file."""
    number: int
    category: str
    turns: tuple[str, ...]

    @property
    def group(self) -> str:
        """One of Spec-Bench's six groups; any other category is its own group."""
        return "mt_bench" if self.category in MULTI_TURN else self.category


def read(path: Path) -> list[Question]:
    """The questions of a file, in its order; empty lines do not count.

    Raises:
        DataError: naming the file and the first line that cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    found: dict[int, Question] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            question = _question(number, line)
            if question.number in found:
                before = found[question.number].line
                raise ValueError(f"question_id {question.number} is already on line {before}")
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}.") from None
        found[question.number] = question
    if not found:
        raise DataError(f"{path}: has no questions. Write one JSON object per line.")
    return list(found.values())


def choose(
    questions: Iterable[Question], limit: int | None, fits: Callable[[Question], bool]
) -> tuple[list[Question], list[Question]]:
    """The first `limit` questions of every group that fit (None: all), and those skipped."""
    seen: Counter[str] = Counter()
    kept: list[Question] = []
    passed: list[Question] = []
    for question in questions:
        if limit is not None and seen[question.group] == limit:
            continue
        fit = fits(question)
        seen[question.group] += fit
        (kept if fit else passed).append(question)
    return kept, passed


def _question(number: int, line: str) -> Question:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ValueError(
            'is not an object; write {"question_id": 1, "category": "qa", "turns": […]}'
        )
    identity, category, turns = (_field(raw, key) for key in ("question_id", "category", "turns"))
    if type(identity) is not int:
        raise ValueError(f"question_id is {identity!r}; it must be a whole number")
    if not isinstance(category, str) or not category:
        raise ValueError(f"category is {category!r}; it must be a name")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"turns is {turns!r}; it must be a list of at least one string")
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise ValueError(f"turns has {turn!r}; every turn must be a non-empty string")
    return Question(number, identity, category, tuple(turns))


def _field(raw: dict[str, Any], key: str) -> Any:
    if key not in raw:
        raise ValueError(f"{key} is missing")
    return raw[key]
