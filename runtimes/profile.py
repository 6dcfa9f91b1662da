"""Device profiles: what the forwards of a pair cost on a machine, and where the figures are from.

A profile is a TOML file; docs/simulator.md shows one. Times are milliseconds there and seconds
here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from mirror_edge.costs import Costs, Curve
from mirror_edge.errors import DataError, OptionError

__all__ = [
    "Profile",
    "Source",
    "StatedText",
    "coverage_law",
    "read",
    "roofline",
    "shipped",
]

KINDS = ("measured", "published", "estimated", "fitted", "assumed")


@dataclass(frozen=True)
class StatedText:
    """How alike the models are, where no recorded text says it."""

    agreement: float
    """How often the draft says the target's token."""
    coverage: tuple[float, ...]
    """Ω_1, Ω_2, …: how often the target's token is among the exit head's best κ."""
    streams: tuple[float, ...] = ()
    """How often each of the draft's streams is right about what the draft itself will say."""


@dataclass(frozen=True)
class Source:
    """Where figures are from."""

    figures: tuple[str, ...]
    kind: str
    """One of `KINDS`."""
    how: str
    url: str | None


@dataclass(frozen=True)
class Profile:
    """A machine and a pair of models on it. Times are seconds."""

    name: str
    costs: Costs
    """Of the draft by the rows of a forward; `beside` is a factor on both devices' times."""
    branch_rows: int
    """Cache rows of the draft that a rollout may fill."""
    stream_share: float
    """A stream row's time as a share of a whole row's: it runs through the top layers alone."""
    hand_over: float
    """Between the lanes, one way."""
    host: float
    """A step's time in no device."""
    text: StatedText
    window: int
    candidates: int
    branches: int | None
    sources: tuple[Source, ...]


def shipped() -> dict[str, Path]:
    """The profiles that come with the package, by name."""
    folder = Path(str(files("mirror_edge.runtimes"))) / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read(profile: str) -> Profile:
    """A profile by the name of a shipped one, or by its path.

    Raises:
        OptionError: if there is neither.
        DataError: naming the file and the field that cannot be used.
    """
    known = shipped()
    path = known.get(profile, Path(profile))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise OptionError(
            f"{profile}: there is no such profile or file; the profiles are {', '.join(known)}."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: is not TOML ({error}).") from error
    return _profile(_Table(str(path), "", fields))


def roofline(floor: float, row: float) -> Curve:
    """Reading the weights takes `floor`, each row's arithmetic `row`; the longer one counts."""
    if row == 0.0:
        return Curve((1,), (floor,))
    ridge = max(1, int(floor / row))
    rows = (ridge, ridge + 1, ridge + 2)
    return Curve(rows, tuple(max(floor, row * n) for n in rows))


def coverage_law(best_of_eight: float) -> tuple[float, ...]:
    """Ω_κ from Ω_8: misses become fewer with the square root of κ."""
    return tuple(
        max(0.0, 1.0 - (1.0 - best_of_eight) * (8.0 / candidates) ** 0.5)
        for candidates in range(1, 65)
    )


def _profile(top: _Table) -> Profile:
    target, draft = top.table("target"), top.table("draft")
    text, settings = top.table("text"), top.table("settings")
    profile = Profile(
        name=top.text("name"),
        costs=Costs(
            prefix=_curve(target.table("prefix")),
            exit=_curve(target.table("exit")),
            suffix=_curve(target.table("suffix")),
            draft=_curve(draft.table("forward")),
            beside=1.0 + top.number("slow_down", default=0.0),
        ),
        branch_rows=draft.whole("branch_rows", default=512),
        stream_share=draft.number("stream_share", default=0.0, at_most=1.0),
        hand_over=top.number("hand_over_ms") / 1e3,
        host=top.number("host_ms", default=0.0) / 1e3,
        text=StatedText(
            text.number("agreement", at_most=1.0),
            _coverage(text),
            text.numbers("streams", at_most=1.0) if "streams" in text else (),
        ),
        window=settings.whole("window"),
        candidates=settings.whole("candidates"),
        branches=settings.whole("branches", or_all=True),
        sources=tuple(_source(table) for table in top.tables("sources")),
    )
    for table in (target, draft, text, settings, top):
        table.nothing_else()
    return profile


def _curve(table: _Table) -> Curve:
    if "floor_ms" in table:
        curve = roofline(table.number("floor_ms") / 1e3, table.number("row_ms") / 1e3)
    else:
        rows, ms = table.wholes("rows"), table.numbers("ms")
        if len(rows) != len(ms):
            raise table.error("ms", f"has {len(ms)} values and rows {len(rows)}; pair them up")
        if any(a >= b for a, b in pairwise(rows)):
            raise table.error("rows", "must grow from value to value")
        curve = Curve(rows, tuple(value / 1e3 for value in ms))
    table.nothing_else()
    return curve


def _coverage(text: _Table) -> tuple[float, ...]:
    given = text.either_number_or_numbers("coverage", at_most=1.0)
    if isinstance(given, float):
        return coverage_law(given)
    if any(a > b for a, b in pairwise(given)):
        raise text.error("coverage", "must not fall as κ grows")
    return given


def _source(table: _Table) -> Source:
    kind = table.text("kind")
    if kind not in KINDS:
        raise table.error("kind", f"is {kind!r}; it must be one of {', '.join(KINDS)}")
    source = Source(
        figures=tuple(part.strip() for part in table.text("figures").split(",")),
        kind=kind,
        how=table.text("how"),
        url=table.text("url") if "url" in table or kind == "published" else None,
    )
    table.nothing_else()
    return source


class _Table:
    """A table of the file, read field by field; every refusal names the field."""

    def __init__(self, file: str, name: str, fields: dict[str, Any]) -> None:
        self._file, self._name, self._fields = file, name, fields
        self._known: set[str] = set()

    def __contains__(self, field: str) -> bool:
        self._known.add(field)
        return field in self._fields

    def error(self, field: str, problem: str) -> DataError:
        where = f"{self._name}.{field}" if self._name else field
        return DataError(f"{self._file}: {where} {problem}.")

    def nothing_else(self) -> None:
        """Refuse fields that nobody asked for."""
        for field in self._fields:
            if field not in self._known:
                known = ", ".join(sorted(self._known))
                raise self.error(field, f"is not a field of a profile; here it may have {known}")

    def table(self, field: str) -> _Table:
        value = self._take(field, dict, "a table")
        return _Table(self._file, f"{self._name}.{field}" if self._name else field, value)

    def tables(self, field: str) -> list[_Table]:
        values = self._take(field, list, "a list of tables, [[" + field + "]]")
        if not values or not all(isinstance(value, dict) for value in values):
            raise self.error(field, f"must be a list of tables, [[{field}]]")
        return [_Table(self._file, f"{field}[{i}]", value) for i, value in enumerate(values)]

    def text(self, field: str) -> str:
        value: str = self._take(field, str, "a text")
        return value

    def number(
        self, field: str, default: float | None = None, at_most: float = float("inf")
    ) -> float:
        if default is not None and field not in self:
            return default
        return self._in_range(field, self._take(field, (int, float), "a number"), at_most)

    def numbers(self, field: str, at_most: float = float("inf")) -> tuple[float, ...]:
        values: Sequence[Any] = self._take(field, list, "a list of numbers")
        if not values or not all(type(value) in (int, float) for value in values):
            raise self.error(field, "must be a list of numbers")
        return tuple(self._in_range(field, value, at_most) for value in values)

    def wholes(self, field: str) -> tuple[int, ...]:
        values: Sequence[Any] = self._take(field, list, "a list of whole numbers")
        if not values or not all(type(value) is int and value > 0 for value in values):
            raise self.error(field, "must be a list of whole numbers from 1 up")
        return tuple(values)

    def either_number_or_numbers(self, field: str, at_most: float) -> float | tuple[float, ...]:
        if isinstance(self._fields.get(field), list):
            return self.numbers(field, at_most)
        return self.number(field, at_most=at_most)

    def whole(self, field: str, default: int | None = None, *, or_all: bool = False) -> Any:
        """A whole number from 1 up; with `or_all` None for `"all"`."""
        if default is not None and field not in self:
            return default
        wanted = "a whole number from 1 up" + (' or "all"' if or_all else "")
        value = self._take(field, (int, str) if or_all else int, wanted)
        if or_all and value == "all":
            return None
        if isinstance(value, str) or value < 1:
            raise self.error(field, f"is {value!r}; it must be {wanted}")
        return value

    def _in_range(self, field: str, value: float, at_most: float) -> float:
        if not 0.0 <= value <= at_most or value == float("inf"):
            allowed = "0 or more" if at_most == float("inf") else f"from 0 to {at_most:g}"
            raise self.error(field, f"is {value}; it must be {allowed}")
        return float(value)

    def _take(self, field: str, kinds: type | tuple[type, ...], wanted: str) -> Any:
        self._known.add(field)
        if field not in self:
            raise self.error(field, f"is missing; it must be {wanted}")
        value = self._fields[field]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self.error(field, f"is {value!r}; it must be {wanted}")
        return value
