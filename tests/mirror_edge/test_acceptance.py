"""What is held of a draft: neither swayed by chance nor slow to see another text."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_edge.acceptance import Acceptance

BITS = st.lists(st.booleans(), max_size=80)


def windows(acceptance: Acceptance, agreement: float, count: int, seed: int = 0) -> list[float]:
    """Windows of 4 whose tokens are right with a probability; what was held after each."""
    draw, held = np.random.default_rng(seed), []
    for _ in range(count):
        right = draw.random(4) < agreement
        acceptance.add(4 if right.all() else int(np.argmin(right)), 4)
        held.append(acceptance.mean)
    return held


@pytest.mark.parametrize("agreement", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_not_swayed_by_an_unlucky_dozen(agreement: float, seed: int) -> None:
    held = windows(Acceptance(), agreement, 800, seed)[200:]
    assert np.std(held) < 0.04
    assert np.mean(held) == pytest.approx(agreement, abs=0.04)


@pytest.mark.parametrize(("first", "later", "after"), [(0.8, 0.1, 40), (0.1, 0.9, 15)])
def test_it_sees_within_some_dozen_tokens_that_the_text_is_another_one(
    first: float, later: float, after: int
) -> None:
    acceptance = Acceptance()
    windows(acceptance, first, 400)
    held = windows(acceptance, later, after)
    assert held[-1] == pytest.approx(later, abs=0.25)


@given(BITS)
def test_a_review_counts_every_token_as_a_window_would(right: list[bool]) -> None:
    reviewed, drafted = Acceptance(), Acceptance()
    reviewed.review(right)
    at = 0
    while at < len(right):
        window = right[at : at + 7]
        accepted = [*window, False].index(False)
        drafted.add(accepted, len(window))
        at += accepted + 1
    assert reviewed.places.tolist() == drafted.places.tolist()
    assert reviewed.mean == drafted.mean


def test_a_review_of_a_hundred_tokens_is_worth_as_many_windows() -> None:
    draw, acceptance = np.random.default_rng(0), Acceptance()
    right = draw.random(200) < 0.9
    acceptance.review(right.tolist())
    assert acceptance.mean == pytest.approx(right.mean(), abs=0.05)
    assert acceptance.chances(10) == pytest.approx([right.mean()] * 10, abs=0.1)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60))
def test_chances_are_chances_and_survive_json(seen: list[tuple[int, int]]) -> None:
    acceptance = Acceptance()
    for accepted, proposed in seen:
        acceptance.add(min(accepted, proposed), proposed)
    found = acceptance.chances(12)
    assert len(found) == 12
    assert ((found >= 0.0) & (found <= 1.0)).all()
    assert json.loads(json.dumps(found.tolist())) == found.tolist()
