"""Verification: how far the draft agreed, and what the target says there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.verify import Verdict, verify

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCABULARY = 6
TOKENS = st.integers(0, VOCABULARY - 1)


@pytest.mark.parametrize(
    ("drafted", "said", "verdict"),
    [
        ([], [4], (0, 4)),
        ([1], [1, 4], (1, 4)),
        ([1], [2, 4], (0, 2)),
        ([1, 2, 3], [1, 2, 3, 5], (3, 5)),
        ([1, 2, 3], [1, 2, 0, 5], (2, 0)),
        ([1, 2, 3], [0, 2, 3, 5], (0, 0)),
        ([1, 2, 3], [1, 0, 3, 5], (1, 0)),
    ],
)
def test_the_longest_agreeing_start_is_accepted_and_the_next_token_is_the_targets(
    drafted: list[int], said: list[int], verdict: tuple[int, int]
) -> None:
    logits = np.eye(VOCABULARY, dtype=np.float32)[said]
    assert verify(logits, [0, 0], drafted, Sampler(Sampling(), VOCABULARY)) == Verdict(*verdict)


def drawn(draw: int, rows: int) -> NDArray[np.float32]:
    logits = 2 * np.random.default_rng(draw).standard_normal((rows, VOCABULARY))
    return logits.astype(np.float32)


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([0.8, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 2.5]),
    seed=st.integers(0, 50),
)


@given(
    st.integers(0, 1000),
    st.lists(TOKENS, min_size=1, max_size=5),
    st.lists(TOKENS, max_size=4),
    SAMPLINGS,
    st.integers(0, 4),
)
@settings(max_examples=300, deadline=None)
def test_the_verdict_is_what_the_target_would_say_alone(
    draw: int, committed: list[int], drafted: list[int], sampling: Sampling, truthful: int
) -> None:
    """Token by token, with the noise and the history of its place; drafts agree for a while."""
    logits = drawn(draw, len(drafted) + 1)
    sampler = Sampler(sampling, VOCABULARY)

    def say(j: int, before: list[int]) -> int:
        return int(sampler.choose(logits[j : j + 1], [len(before)], [before])[0])

    for j in range(min(truthful, len(drafted))):
        drafted[j] = say(j, [*committed, *drafted[:j]])
    said: list[int] = []
    while len(said) == 0 or (said == drafted[: len(said)] and len(said) <= len(drafted)):
        said.append(say(len(said), [*committed, *said]))
    assert verify(logits, committed, drafted, sampler) == Verdict(len(said) - 1, said[-1])


@given(st.integers(0, 1000), st.lists(TOKENS, max_size=4))
@settings(max_examples=100, deadline=None)
def test_greedy_has_one_answer_by_either_road(draw: int, drafted: list[int]) -> None:
    """A penalty of nearly one takes the general road and changes no choice."""
    logits = drawn(draw, len(drafted) + 1)
    general = Sampler(Sampling(repetition_penalty=1 + 1e-12), VOCABULARY)
    assert general.needs_history
    short = verify(logits, [1, 2], drafted, Sampler(Sampling(), VOCABULARY))
    assert verify(logits, [1, 2], drafted, general) == short


def test_rows_beyond_the_window_are_padding() -> None:
    logits = np.eye(VOCABULARY, dtype=np.float32)[[1, 4, 0, 0, 0]]
    for sampling in (Sampling(), Sampling(repetition_penalty=1.01)):
        assert verify(logits, [0], [1], Sampler(sampling, VOCABULARY)) == Verdict(1, 4)


def test_a_token_accepted_in_the_window_is_penalised_in_its_later_rows() -> None:
    row = np.array([0.0, 2.0, 1.5, 0.0], dtype=np.float32)
    sampler = Sampler(Sampling(repetition_penalty=1.5), 4)
    assert verify(np.stack([row, row]), [0], [1], sampler) == Verdict(1, 2)
