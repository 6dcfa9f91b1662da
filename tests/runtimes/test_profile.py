"""Device profiles: curves, errors, and the profiles that come with the package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_edge.errors import DataError, OptionError
from mirror_edge.runtimes.profile import coverage_law, read, roofline, shipped, write

TEXT = """
name = "made up"
hand_over_ms = 0.05
[target]
prefix = { floor_ms = 8.0, row_ms = 1.0 }
exit = { floor_ms = 0.2, row_ms = 0.0 }
suffix = { rows = [1, 4, 8], ms = [5, 5.5, 9] }
[draft]
forward = { rows = [1], ms = [1.2] }
[text]
agreement = 0.8
coverage = 0.9
[settings]
window = 7
candidates = 8
branches = "all"
[[sources]]
figures = "target.prefix, target.suffix"
kind = "estimated"
how = "made up"
"""


def test_a_profile_is_read_in_seconds(tmp_path: Path) -> None:
    (path := tmp_path / "mine.toml").write_text(TEXT)
    profile = read(str(path))
    assert profile.hand_over == pytest.approx(50e-6)
    assert [profile.costs.prefix(n) for n in (1, 8, 9, 20)] == pytest.approx(
        [8e-3, 8e-3, 9e-3, 20e-3]
    )
    assert [profile.costs.suffix(n) for n in (1, 2.5, 6)] == pytest.approx([5e-3, 5.25e-3, 7.25e-3])
    assert profile.costs.suffix(12) == pytest.approx(12.5e-3)
    assert profile.costs.draft(64) == pytest.approx(1.2e-3)
    assert (profile.window, profile.candidates, profile.branches) == (7, 8, None)
    assert profile.text.coverage[7] == pytest.approx(0.9)
    assert profile.sources[0].figures == ("target.prefix", "target.suffix")


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ('name = "made up"', "", "name is missing"),
        ("hand_over_ms = 0.05", "hand_over_ms = -1", "hand_over_ms is -1; it must be 0 or more"),
        ("hand_over_ms = 0.05", 'hand_over_ms = "0.1"', "hand_over_ms is '0.1'; it must be a num"),
        ("hand_over_ms = 0.05", "hand_over_ms = nan", "hand_over_ms is nan"),
        ("hand_over_ms = 0.05", "hand_over_ms = inf", "hand_over_ms is inf"),
        ("hand_over_ms = 0.05", "hand_over_ms = true", "hand_over_ms is True"),
        ("hand_over_ms", "hand_over_s = 1\nhand_over_ms", "hand_over_s is not a field"),
        ("floor_ms = 8.0, ", "", "target.prefix.rows is missing"),
        (", row_ms = 1.0", "", "target.prefix.row_ms is missing"),
        ("[1, 4, 8]", "[1, 4, 4]", "target.suffix.rows must be increasing"),
        ("[1, 4, 8]", "[1, 4]", "target.suffix.ms has 3 values, but rows has 2"),
        ("[1, 4, 8]", "[]", "target.suffix.rows must be a list of whole numbers"),
        ("[1, 4, 8]", "[1, 4.5, 8]", "target.suffix.rows must be a list of whole numbers"),
        ("[5, 5.5, 9]", '[5, "6", 9]', "target.suffix.ms must be a list of numbers"),
        ("[draft]", "[drafts]", "draft is missing"),
        ("forward = { rows", "forward = { row", "draft.forward.rows is missing"),
        ("agreement = 0.8", "agreement = 1.8", "text.agreement is 1.8; it must be from 0 to 1"),
        ("coverage = 0.9", "coverage = [0.9, 0.8]", "text.coverage must not decrease"),
        ("window = 7", "window = 0", "settings.window is 0"),
        (
            '"all"',
            '"some"',
            "settings.branches is 'some'; it must be a whole number, 1 or more, or",
        ),
        ('kind = "estimated"', 'kind = "guess"', "sources[0].kind is 'guess'"),
        ('kind = "estimated"', 'kind = "published"', "sources[0].url is missing"),
        ("[[sources]]", "[sources]", "sources is {"),
        ("[target]", "[target", "is not valid TOML"),
    ],
)
def test_an_error_names_the_file_and_the_field(
    tmp_path: Path, written: str, instead: str, message: str
) -> None:
    assert written in TEXT
    (path := tmp_path / "mine.toml").write_text(TEXT.replace(written, instead, 1))
    with pytest.raises(DataError) as refused:
        read(str(path))
    assert f"{path}: {message}" in str(refused.value)


def test_an_unknown_profile_is_refused_with_a_list_of_the_known_ones() -> None:
    with pytest.raises(OptionError, match="macbook-pro-m4-pro"):
        read("my-machine")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(str(tmp_path))


FIGURES = {
    "target.prefix",
    "target.exit",
    "target.suffix",
    "draft.forward",
    "draft.stream_share",
    "text.agreement",
    "text.coverage",
    "text.streams",
    "hand_over_ms",
    "host_ms",
}


FREE = {"draft.branch_rows", "settings.window", "settings.candidates", "settings.branches"}
"""Figures that are settings, for which a source is optional."""


@pytest.mark.parametrize("name", shipped())
def test_every_figure_of_a_shipped_profile_has_a_source(name: str) -> None:
    profile = read(name)
    assert profile.name
    figures = {figure for source in profile.sources for figure in source.figures}
    assert figures >= FIGURES
    assert figures <= FIGURES | FREE
    for source in profile.sources:
        assert source.how.endswith(".")
        assert source.url is None or source.url.startswith("https://")


@given(st.floats(0.001, 1.0), st.floats(0.0001, 0.1), st.integers(1, 500))
def test_the_roofline_is_the_longer_of_reading_the_weights_and_the_arithmetic(
    floor: float, row: float, rows: int
) -> None:
    assert roofline(floor, row)(rows) == pytest.approx(max(floor, row * rows))


@given(st.floats(0.0, 1.0))
def test_the_coverage_law_keeps_the_stated_value_and_never_falls(best_of_eight: float) -> None:
    law = coverage_law(best_of_eight)
    assert law[7] == pytest.approx(best_of_eight)
    assert list(law) == sorted(law)
    assert 0.0 <= law[0] <= law[-1] <= 1.0


@pytest.mark.parametrize("name", shipped())
def test_a_written_profile_can_be_read(name: str, tmp_path: Path) -> None:
    profile = read(name)
    write(profile, tmp_path / "again.toml")
    again = read(str(tmp_path / "again.toml"))
    assert replace(again, costs=profile.costs, text=profile.text) == profile
    assert again.costs.beside == pytest.approx(profile.costs.beside)
    for curve in ("prefix", "exit", "suffix", "draft"):
        for rows in (1, 3, 8, 40, 300):
            now, then = (getattr(p.costs, curve)(rows) for p in (again, profile))
            assert now == pytest.approx(then, rel=1e-4)
    assert again.text.coverage == pytest.approx(profile.text.coverage, rel=1e-4)
