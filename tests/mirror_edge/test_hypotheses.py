"""Roots and the hypothesis tree: which outcomes are prepared for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_edge.hypotheses import Branch, ExitSignal, HypothesisTree, Root, choose_roots
from mirror_edge.sampling import Sampler, Sampling

VOCABULARY = 16
POSITION = 9


class Case(NamedTuple):
    """A window, its signal, and how to choose."""

    signal: ExitSignal
    drafted: list[int]
    candidates: int
    agreement: float
    sampler: Sampler

    def roots(self) -> list[Root]:
        return choose_roots(self.signal, self.drafted, POSITION, *self[2:])


def drawn(
    draw: int,
    window: int,
    pool: int,
    candidates: int,
    agreement: float,
    temperature: float,
) -> Case:
    """A random exit head; each draft token is now its favourite, now any token."""
    rng = np.random.default_rng(draw)
    logits = 2 * rng.standard_normal((window + 1, VOCABULARY))
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    ids = np.argsort(-logits, axis=-1)[:, :pool]
    drafted = [int(rng.choice([row[0], rng.integers(VOCABULARY)])) for row in ids[:window]]
    signal = ExitSignal(ids, np.take_along_axis(logits, ids, axis=-1).astype(np.float32))
    sampler = Sampler(Sampling(temperature=temperature, seed=draw), VOCABULARY)
    return Case(signal, drafted, candidates, agreement, sampler)


CASES = st.builds(
    drawn,
    st.integers(0, 10_000),
    window=st.integers(0, 5),
    pool=st.integers(6, VOCABULARY),
    candidates=st.integers(1, 5),
    agreement=st.sampled_from([0.0, 0.3, 0.8]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
)


@given(CASES)
@settings(deadline=None)
def test_every_row_has_its_corrections_and_never_the_drafted_token(case: Case) -> None:
    roots = case.roots()
    assert len(set(roots)) == len(roots)
    for row in range(len(case.drafted) + 1):
        tokens = [root.token for root in roots if root.row == row]
        assert len(tokens) == case.candidates
        assert set(tokens) <= set(case.signal.ids[row].tolist())
        assert row == len(case.drafted) or case.drafted[row] not in tokens
    assert {root.row for root in roots} == set(range(len(case.drafted) + 1))


def ranking(case: Case) -> list[tuple[float, Root]]:
    """All roots, likeliest first, one outcome at a time."""
    ranked: list[tuple[float, Root]] = []
    reach = 1.0
    for j, (ids, logprobs) in enumerate(zip(case.signal.ids, case.signal.logprobs, strict=True)):
        score = {int(v): float(p) for v, p in zip(ids, logprobs, strict=True)}
        if temperature := case.sampler.sampling.temperature:
            noise = case.sampler.noise(POSITION + j)
            score = {v: p / temperature + float(noise[v]) for v, p in score.items()}
        whole = sum(np.exp(s) for s in score.values())
        chance = {v: float(np.exp(s) / whole) for v, s in score.items()}
        best = sorted(chance, key=lambda v: -chance[v])[: case.candidates + 1]
        leave, agreed = 1.0, None
        if j < len(case.drafted):
            agreed = case.drafted[j]
            seen = chance[agreed] if agreed in best else chance[best[-1]]
            accepted = max(seen, case.agreement)
            leave = (1 - accepted) / (1 - seen)
        for v in [v for v in best if v != agreed][: case.candidates]:
            ranked.append((reach * leave * chance[v], Root(j, v)))
        if agreed is not None:
            reach *= accepted
    return sorted(ranked, key=lambda item: -item[0])


@given(CASES)
@settings(max_examples=200, deadline=None)
def test_the_likeliest_outcomes_come_first(case: Case) -> None:
    """In order, and neither more nor fewer; equal ones may change places."""
    expected = ranking(case)
    roots = case.roots()
    assert len(roots) == len(expected)
    chance = {root: p for p, root in expected}
    found = [chance[root] for root in roots]
    assert found == pytest.approx([p for p, _ in expected[: len(found)]], rel=1e-3, abs=1e-12)


def test_with_temperature_the_shared_noise_names_the_candidates() -> None:
    """An exit head that knows the target's logits always has the target's own token first."""
    rng = np.random.default_rng(5)
    for seed in range(50):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), VOCABULARY)
        logits = rng.standard_normal((1, VOCABULARY)).astype(np.float32)
        signal = ExitSignal(np.arange(VOCABULARY)[None], logits)
        token = int(sampler.choose(logits, [POSITION])[0])
        assert choose_roots(signal, [], POSITION, 1, 0.5, sampler) == [Root(0, token)]


def test_with_the_same_chances_agreement_moves_the_roots_to_the_end_of_the_window() -> None:
    ids = np.tile(np.arange(4), (3, 1))
    logprobs = np.log(np.full((3, 4), 0.25, dtype=np.float32))
    sampler = Sampler(Sampling(), VOCABULARY)

    def rows(agreement: float) -> list[int]:
        signal = ExitSignal(ids, logprobs)
        roots = choose_roots(signal, [0, 0], POSITION, 3, agreement, sampler)[:3]
        return [root.row for root in roots]

    assert rows(0.0) == [0, 0, 0]
    assert rows(0.95) == [2, 2, 2]


def test_an_exit_head_that_is_certain_of_the_draft_is_no_division_by_zero() -> None:
    signal = ExitSignal(np.array([[1, 2], [3, 4]]), np.array([[0.0, -200.0], [-0.1, -3.0]], "f4"))
    roots = choose_roots(signal, [1], POSITION, 1, 1.0, Sampler(Sampling(), VOCABULARY))
    assert roots[0] == Root(1, 3)


def test_the_tree_finds_exactly_its_own_outcomes() -> None:
    branches = [Branch(Root(0, 5), (1, 2)), Branch(Root(2, 5), (3,)), Branch(Root(2, 6), ())]
    tree = HypothesisTree(branches)
    for branch in branches:
        assert tree.lookup(*branch.root) is branch
    for absent in (Root(1, 5), Root(0, 6), Root(5, 0)):
        assert tree.lookup(*absent) is None
    assert HypothesisTree([]).lookup(0, 0) is None
