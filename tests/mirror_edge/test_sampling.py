"""Sampling: the shared noise, and which tokens are left to choose from."""

from __future__ import annotations

import gc
import itertools
import math
import re
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mirror_edge.errors import OptionError
from mirror_edge.noise import gumbel
from mirror_edge.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEEDS = st.integers(-(2**70), 2**70)
POSITIONS = st.integers(0, 2**40)
ALL = np.arange(50_000, dtype=np.uint32)


@given(SEEDS, POSITIONS, st.lists(st.integers(0, 999), min_size=1))
@settings(deadline=None)
def test_a_subset_has_the_noise_of_the_whole(seed: int, position: int, ids: list[int]) -> None:
    whole = gumbel(seed, [position], ALL[:1000])[0]
    part = gumbel(seed, [position], np.array(ids, dtype=np.uint32))[0]
    assert part.tolist() == whole[ids].tolist()
    assert Sampler(Sampling(seed=seed), 1000).noise(position).tolist() == whole.tolist()


def test_the_noise_never_changes_between_versions() -> None:
    """Else a seed would no longer say what it said."""
    ids = np.array([0, 1, 151_935], dtype=np.uint32)
    assert gumbel(0, [0], ids)[0].tolist() == pytest.approx([0.0901875, 1.9869198, -0.4362960])
    assert gumbel(-7, [123_456], ids)[0].tolist() == pytest.approx(
        [1.6798431, -0.7524308, -0.8357550]
    )


@given(SEEDS, POSITIONS)
@settings(max_examples=30, deadline=None)
def test_seed_position_and_id_each_change_the_noise(seed: int, position: int) -> None:
    noise = gumbel(seed, [position], ALL[:64])[0]
    for other in (
        gumbel(seed + 1, [position], ALL[:64])[0],
        gumbel(seed, [position + 1], ALL[:64])[0],
        gumbel(seed, [position], ALL[1:65])[0],
    ):
        assert not np.any(noise == other)


def test_the_sampler_gives_the_same_noise_after_it_has_forgotten_it() -> None:
    sampler = Sampler(Sampling(seed=3), 16)
    first = sampler.noise(0).tolist()
    for position in range(1, 200):
        sampler.noise(position)
    assert sampler.noise(0).tolist() == first


def test_the_noise_goes_with_its_sampler() -> None:
    sampler = Sampler(Sampling(temperature=1.0), 16)
    sampler.prepare(0, 20)
    gone = weakref.ref(sampler)
    gc.disable()
    try:
        del sampler
        assert gone() is None
    finally:
        gc.enable()


STREAMS: dict[str, NDArray[np.float32]] = {
    "ids": gumbel(1, [2], ALL)[0],
    "positions": np.concatenate([gumbel(1, [p], ALL[:5])[0] for p in range(10_000)]),
    "seeds": np.concatenate([gumbel(s, [2], ALL[:5])[0] for s in range(10_000)]),
}


@pytest.mark.parametrize("along", STREAMS)
def test_the_noise_is_gumbel_along(along: str) -> None:
    noise = np.sort(STREAMS[along].astype(np.float64))
    n = len(noise)
    expected = np.exp(-np.exp(-noise))
    ranks = np.arange(n)
    distance = max(np.max(expected - ranks / n), np.max((ranks + 1) / n - expected))
    assert distance * math.sqrt(n) < 1.63  # Kolmogorov-Smirnov at 1 %
    tails = np.array([np.sum(expected < 1e-3), np.sum(expected > 1 - 1e-3)])
    assert np.all(np.abs(tails - n * 1e-3) < 3 * math.sqrt(n * 1e-3))


STEPS = itertools.product([0, 1, 2, 2**32], [0, 1, 2, 2**32], [0, 1, 2, 256])


@pytest.mark.parametrize(("seed_step", "position_step", "id_step"), list(STEPS)[1:])
def test_neighbours_are_uncorrelated(seed_step: int, position_step: int, id_step: int) -> None:
    here = gumbel(11, [5], ALL)[0]
    there = gumbel(11 + seed_step, [5 + position_step], ALL + np.uint32(id_step))[0]
    n = len(ALL)
    for a, b in ((here, there), (np.exp(-here), np.exp(-there))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / math.sqrt(n)


def test_the_choice_has_the_softmax_distribution() -> None:
    logits = np.array([[1.5, 0.0, -1.0, 0.7, 0.7]], dtype=np.float32)
    weights = np.exp(logits[0] / 0.8)
    counts = np.zeros(5)
    sampler = Sampler(Sampling(temperature=0.8, seed=4), 5)
    n = 20_000
    for position in range(n):
        counts[sampler.choose(logits, [position])[0]] += 1
    expected = n * weights / weights.sum()
    assert np.sum((counts - expected) ** 2 / expected) < 13.28  # chi-square, 4 df, 1 %


START = 3
"""Where the answer begins in a history."""


def penalised(
    logits: NDArray[Any], history: list[int], sampling: Sampling, kind: type = np.float32
) -> NDArray[Any]:
    """Logits after the penalties, token by token, as Hugging Face and OpenAI describe them."""
    row, repeated = logits.astype(kind), kind(sampling.repetition_penalty)
    for token in range(len(row)):
        if token in history:
            row[token] = row[token] * repeated if row[token] < 0 else row[token] / repeated
        if count := history[START:].count(token):
            row[token] -= kind(sampling.presence_penalty + sampling.frequency_penalty * count)
    return row


def reference_kept(
    logits: NDArray[np.float32], history: list[int], sampling: Sampling
) -> NDArray[np.bool_]:
    """Which tokens are left, by sorting, in the order the class states.

    Discards the example where rounding could decide.
    """
    row = penalised(logits, history, sampling, np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(row):
        row[row < np.sort(row)[-sampling.top_k]] = -np.inf
    share = np.exp(row - row.max())
    share /= share.sum()
    likelier = np.array([share[row > value].sum() for value in row])
    assume(np.all(np.abs(likelier - sampling.top_p) > 1e-5))
    row[likelier >= sampling.top_p] = -np.inf
    ratio = np.exp(row - row.max())
    assume(sampling.min_p == 0 or np.all(np.abs(ratio - sampling.min_p) > 1e-5))
    row[ratio < sampling.min_p] = -np.inf
    return ~np.isneginf(row)


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.25, 0.7, 1.0, 1.5, 4.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 12, 40]),
    top_p=st.sampled_from([1e-300, 0.05, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 1e-300, 0.01, 0.1, 0.3, 0.9]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3, 2.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7, -0.25]),
    seed=st.integers(0, 1000),
)
HISTORIES = st.lists(st.integers(0, 30), max_size=8)


def drawn_logits(draw_seed: int, spread: float, ties: bool) -> NDArray[np.float32]:
    logits: NDArray[np.float64] = spread * np.random.default_rng(draw_seed).standard_normal(24)
    return (np.round(logits) if ties else logits).astype(np.float32)


LOGITS = st.builds(
    drawn_logits, st.integers(0, 10_000), st.sampled_from([0.5, 2.0, 6.0]), st.booleans()
)


@given(LOGITS, HISTORIES, SAMPLINGS, st.integers(0, 500))
@settings(max_examples=400, deadline=None)
def test_the_choice_is_the_best_of_the_kept_tokens(
    logits: NDArray[np.float32], history: list[int], sampling: Sampling, position: int
) -> None:
    kept = reference_kept(logits, history, sampling)
    sampler = Sampler(sampling, len(logits) + 8, START)
    processed = penalised(logits, history, sampling)
    contest = processed / np.float32(sampling.temperature) + sampler.noise(position)[: len(logits)]
    contest[~kept] = -np.inf
    chosen = sampler.choose(logits[None], [position], [history])
    assert chosen.tolist() == [int(contest.argmax())]


@given(LOGITS, HISTORIES, SAMPLINGS)
@settings(max_examples=100, deadline=None)
def test_rows_are_chosen_independently(
    logits: NDArray[np.float32], history: list[int], sampling: Sampling
) -> None:
    sampler = Sampler(sampling, len(logits))
    rows = np.stack([logits, logits[::-1], -logits])
    histories = [history, history[:2], []]
    alone = [int(sampler.choose(rows[i : i + 1], [40 + i], [histories[i]])[0]) for i in range(3)]
    assert sampler.choose(rows, [40, 41, 42], histories).tolist() == alone


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 23), min_size=1, max_size=8),
    SAMPLINGS.filter(lambda s: s.top_p > 1e-6).map(
        lambda s: replace(s, presence_penalty=0.0, frequency_penalty=0.0)
    ),
)
@settings(max_examples=100, deadline=None)
def test_the_kept_tokens_are_those_of_transformers(
    draw_seed: int, history: list[int], sampling: Sampling
) -> None:
    torch = pytest.importorskip("torch")
    warpers: Any = pytest.importorskip("transformers.generation.logits_process")
    logits = drawn_logits(draw_seed, 3.0, ties=False)
    chain = [
        warpers.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)),
        warpers.TemperatureLogitsWarper(float(sampling.temperature)),
    ]
    chain += [warpers.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    chain += [warpers.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    chain += [warpers.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    scores, ids = torch.tensor(logits)[None], torch.tensor([history])
    for warper in chain:
        scores = warper(ids, scores)
    kept = reference_kept(logits, history, sampling)
    assert torch.isfinite(scores[0]).tolist() == kept.tolist()


def test_top_p_counts_what_min_p_will_drop() -> None:
    """Of 0.5, 0.2 and thirty of 0.01, the nucleus of 0.6 has two tokens, whatever min-p drops."""
    shares = np.array([[0.5, 0.2, *[0.01] * 30]], dtype=np.float32)
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.6, min_p=0.1), 32)
    chosen = {int(sampler.choose(np.log(shares), [p])[0]) for p in range(200)}
    assert chosen == {0, 1}


def test_a_nucleus_that_is_full_to_the_brim_takes_no_more() -> None:
    """The likeliest has 0.5 of the weight, exactly; so in transformers."""
    logits = np.log(np.array([[1.0, 0.5, 0.5]], dtype=np.float32))
    assert np.exp(logits).sum() == 2.0
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.5), 3)
    assert {int(sampler.choose(logits, [p])[0]) for p in range(100)} == {0}


@pytest.mark.timeout(20)
def test_the_likeliest_token_survives_the_smallest_top_p() -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_p=5e-324), 4)
    logits = np.array([[0.0, 0.5, 0.1, -1.0]], dtype=np.float32)
    assert {int(sampler.choose(logits, [p])[0]) for p in range(50)} == {1}


@given(LOGITS, HISTORIES, SAMPLINGS)
@settings(max_examples=50, deadline=None)
def test_greedy_is_the_likeliest_token_after_the_penalties(
    logits: NDArray[np.float32], history: list[int], sampling: Sampling
) -> None:
    greedy = Sampler(replace(sampling, temperature=0.0), len(logits), START)
    chosen = greedy.choose(logits[None], [7], [history])
    assert chosen.tolist() == [int(penalised(logits, history, sampling).argmax())]


def test_the_repetition_penalty_asks_for_the_histories() -> None:
    with pytest.raises(ValueError, match="histories"):
        Sampler(Sampling(repetition_penalty=1.1), 4).choose(np.zeros((1, 4), np.float32), [0])


def test_choosing_leaves_the_logits_alone() -> None:
    logits = np.array([[3.0, 1.0, -2.0, 0.0]], dtype=np.float32)
    before = logits.copy()
    Sampler(Sampling(0.5, 2, 0.5, 0.3, 1.7, 1), 4).choose(logits, [3], [[0, 2]])
    assert np.array_equal(logits, before)


@given(
    st.lists(st.integers(0, 23), min_size=4, max_size=4, unique=True), st.sampled_from([0.0, 0.7])
)
@settings(deadline=None)
def test_candidates_compete_as_they_would_among_all_tokens(
    ids: list[int], temperature: float
) -> None:
    sampler = Sampler(Sampling(temperature=temperature, seed=2), 24)
    logprobs = np.array([[-0.1, -2.0, -3.0, -4.0]], dtype=np.float32)
    scores = sampler.scores(np.array([ids]), logprobs, [9])
    noise = sampler.noise(9)[ids]
    expected = logprobs if temperature == 0 else logprobs / np.float32(temperature) + noise
    assert np.array_equal(scores, expected.reshape(1, 4))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (-0.1, 1e39, 10**400, math.inf, math.nan)),
        *(("top_k", v) for v in (-1, 1.5, True)),
        *(("seed", v) for v in (None, 0.5, "1")),
        ("temperature", "warm"),
        *(("top_p", v) for v in (0.0, -0.5, 1.01, math.nan)),
        *(("min_p", v) for v in (-0.1, 1.0, math.nan)),
        *(("repetition_penalty", v) for v in (0.0, -1.0, 10**400, math.inf, math.nan)),
        *(("presence_penalty", v) for v in (-101.0, math.inf, math.nan)),
        *(("frequency_penalty", v) for v in (100.1, "some")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=re.escape(f"{name} is {value!r}; it must be")):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    "edge",
    [{"top_p": 1.0}, {"min_p": 0.999}, {"temperature": 0.0}, {"top_k": 0}, {"seed": -(10**30)}],
)
def test_the_edges_of_the_ranges_are_accepted(edge: dict[str, Any]) -> None:
    sampling = Sampling(**{"temperature": 1.0, **edge})
    assert 0 <= Sampler(sampling, 3).choose(np.zeros((1, 3), np.float32), [0])[0] < 3
