"""Device profiles: the times of a pair's forwards on a machine, and the sources of the figures.

A profile is a TOML file; docs/simulator.md shows one. Its times are in milliseconds; here they are
in seconds.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from mirror_edge.costs import Costs, Curve
from mirror_edge.errors import DataError, OptionError
from mirror_edge.runtimes.fields import Fields

__all__ = [
    "Profile",
    "Source",
    "StatedText",
    "coverage_law",
    "read",
    "roofline",
    "shipped",
    "write",
]

_KINDS = ("measured", "published", "estimated", "fitted", "assumed")


@dataclass(frozen=True)
class StatedText:
    """How often the models agree, used where there is no recording."""

    agreement: float
    """How often the draft predicts the target's token."""
    coverage: tuple[float, ...]
    """Ω_1, Ω_2, …: how often the target's token is among the exit head's best κ candidates."""
    streams: tuple[float, ...] = ()
    """How often each of the draft's streams predicts the draft's own later token."""


@dataclass(frozen=True)
class Source:
    """The source of some figures."""

    figures: tuple[str, ...]
    """Field names, such as ``target.prefix``."""
    kind: str
    """measured, published, estimated, fitted or assumed."""
    how: str
    """How they were obtained, as a sentence."""
    url: str | None


@dataclass(frozen=True)
class Profile:
    """A machine and a pair of models on it. Times are in seconds."""

    name: str
    costs: Costs
    """The draft's are by rows per forward; `beside` slows both devices while both run."""
    branch_rows: int
    """Rows of the draft's cache that a rollout may fill."""
    stream_share: float
    """A stream row's time as a share of a main row's: it runs through the top layers only."""
    hand_over: float
    """Time to pass a call or a result from lane to lane."""
    host: float
    """A step's time outside all devices."""
    text: StatedText
    window: int
    """γ."""
    candidates: int
    """κ."""
    branches: int | None
    """R; None: all."""
    sources: tuple[Source, ...]


def shipped() -> dict[str, Path]:
    """The paths of the profiles that come with the package, by name."""
    folder = Path(str(files("mirror_edge.runtimes"))) / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read(profile: str) -> Profile:
    """The profile with this name, or in the file at this path.

    Raises:
        OptionError: if there is neither.
        DataError: if the file cannot be read or a field is invalid, naming both.
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
        raise DataError(f"{path}: is not valid TOML ({error}).") from error
    return _profile(Fields(str(path), "", fields))


def roofline(floor: float, row: float) -> Curve:
    """The longer of `floor`, for reading the weights, and n times `row`, for the arithmetic."""
    if row == 0.0:
        return Curve((1,), (floor,))
    ridge = max(1, int(floor / row))
    rows = (ridge, ridge + 1, ridge + 2)
    return Curve(rows, tuple(max(floor, row * n) for n in rows))


def write(profile: Profile, path: Path) -> None:
    """Write a profile in the format that `read` accepts."""
    costs, text = profile.costs, profile.text
    lines = [
        f"name = {json.dumps(profile.name, ensure_ascii=False)}",
        f"hand_over_ms = {profile.hand_over * 1e3:.6g}",
        f"host_ms = {profile.host * 1e3:.6g}",
        f"slow_down = {costs.beside - 1.0:.6g}",
        "",
        "[target]",
        *(f"{name} = {_points(getattr(costs, name))}" for name in ("prefix", "exit", "suffix")),
        "",
        "[draft]",
        f"forward = {_points(costs.draft)}",
        *([f"exit = {_points(costs.exit_beside)}"] if costs.exit_beside else []),
        f"stream_share = {profile.stream_share:.6g}",
        f"branch_rows = {profile.branch_rows}",
        "",
        "[text]",
        f"agreement = {text.agreement:.6g}",
        f"coverage = {_list(text.coverage)}",
        *([f"streams = {_list(text.streams)}"] if text.streams else []),
        "",
        "[settings]",
        f"window = {profile.window}",
        f"candidates = {profile.candidates}",
        f"branches = {json.dumps(profile.branches or 'all')}",
    ]
    for source in profile.sources:
        lines += [
            "",
            "[[sources]]",
            f"figures = {json.dumps(', '.join(source.figures))}",
            f"kind = {json.dumps(source.kind)}",
            f"how = {json.dumps(source.how, ensure_ascii=False)}",
            *([f"url = {json.dumps(source.url)}"] if source.url else []),
        ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _points(curve: Curve) -> str:
    ms = _list([seconds * 1e3 for seconds in curve.seconds])
    return f"{{ rows = {list(curve.rows)}, ms = {ms} }}"


def _list(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def coverage_law(best_of_eight: float) -> tuple[float, ...]:
    """Ω_1 to Ω_64 from Ω_8: misses fall with the square root of κ."""
    return tuple(
        max(0.0, 1.0 - (1.0 - best_of_eight) * (8.0 / candidates) ** 0.5)
        for candidates in range(1, 65)
    )


def _profile(top: Fields) -> Profile:
    target, draft = top.table("target"), top.table("draft")
    text, settings = top.table("text"), top.table("settings")
    profile = Profile(
        name=top.text("name"),
        costs=Costs(
            prefix=_curve(target.table("prefix")),
            exit=_curve(target.table("exit")),
            suffix=_curve(target.table("suffix")),
            draft=_curve(draft.table("forward")),
            exit_beside=_curve(draft.table("exit")) if "exit" in draft else None,
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


def _curve(table: Fields) -> Curve:
    if "floor_ms" in table:
        curve = roofline(table.number("floor_ms") / 1e3, table.number("row_ms") / 1e3)
    else:
        rows, ms = table.wholes("rows"), table.numbers("ms")
        if len(rows) != len(ms):
            raise table.error(
                "ms", f"has {len(ms)} values, but rows has {len(rows)}; give one per row count"
            )
        if any(a >= b for a, b in pairwise(rows)):
            raise table.error("rows", "must be increasing")
        curve = Curve(rows, tuple(value / 1e3 for value in ms))
    table.nothing_else()
    return curve


def _coverage(text: Fields) -> tuple[float, ...]:
    given = text.either_number_or_numbers("coverage", at_most=1.0)
    if isinstance(given, float):
        return coverage_law(given)
    if any(a > b for a, b in pairwise(given)):
        raise text.error("coverage", "must not decrease as κ grows")
    return given


def _source(table: Fields) -> Source:
    kind = table.text("kind")
    if kind not in _KINDS:
        raise table.error("kind", f"is {kind!r}; it must be one of {', '.join(_KINDS)}")
    source = Source(
        figures=tuple(part.strip() for part in table.text("figures").split(",")),
        kind=kind,
        how=table.text("how"),
        url=table.text("url") if "url" in table or kind == "published" else None,
    )
    table.nothing_else()
    return source
