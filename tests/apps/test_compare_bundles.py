"""Bundles of one pair, side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mirror_edge
from mirror_edge import bundle as bundles
from mirror_edge.apps.compare_bundles import compare
from mirror_edge.errors import DataError

PROMPTS = Path(__file__).parents[1] / "prompts.txt"


def test_another_draft_changes_the_acceptance_and_no_token(
    with_random_draft: mirror_edge.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [bundles.demo(), with_random_draft.bundle.folder]
    compare(both, PROMPTS, limit=2, new_tokens=16)
    rows = json.loads(capsys.readouterr().out)
    assert [(row["bundle"], row["temperature"]) for row in rows] == [
        (str(folder), temperature) for folder in both for temperature in (0.0, 1.0)
    ]
    assert all(row["first_difference_at"] == [None, None] for row in rows)
    for temperature in (0, 1):
        assert (
            rows[temperature]["acceptance_per_token"]
            > rows[2 + temperature]["acceptance_per_token"]
        )


def test_another_target_says_where_the_answers_part(
    changed_target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare([bundles.demo(), changed_target], PROMPTS, limit=3, new_tokens=16)
    other = json.loads(capsys.readouterr().out)[3]
    assert any(isinstance(at, int) and at < 16 for at in other["first_difference_at"])


def test_prompts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/none: cannot be read"):
        compare([bundles.demo()], tmp_path / "none")
