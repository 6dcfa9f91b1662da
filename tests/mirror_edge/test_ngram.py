"""Look-up of n-grams: what followed the last time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_edge.hypotheses import Branch, Root
from mirror_edge.ngram import Lookup, Match, NgramDrafter, foretold
from mirror_edge.sampling import Sampler, Sampling

SAMPLER = Sampler(Sampling(), 10)
TOKENS = st.lists(st.integers(0, 2), max_size=25)


def reference(committed: list[int], tail: list[int], longest: int, depth: int) -> tuple[int, ...]:
    """By looking everywhere: longest first, then latest; a match needs a follower."""
    for n in range(min(longest, len(tail)), 0, -1):
        for end in range(len(committed) - 1, n - 1, -1):
            if committed[end - n : end] == tail[-n:]:
                return tuple(committed[end : end + depth])
    return ()


@given(
    TOKENS,
    st.lists(st.tuples(TOKENS, st.lists(st.integers(0, 2), max_size=3)), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 5),
)
@settings(deadline=None)
def test_look_up_is_a_search_from_the_end(
    prompt: list[int], steps: list[tuple[list[int], list[int]]], longest: int, depth: int
) -> None:
    drafter = NgramDrafter(longest)
    drafter.prefill(prompt)
    committed = list(prompt)
    for told, drafted in steps:
        committed += told
        roots = [Root(row, token) for row in range(len(drafted) + 1) for token in range(4)]
        expected = []
        for root in roots:
            tail = [*committed, *drafted[: root.row], root.token]
            if tokens := reference(committed, tail, longest, depth):
                expected.append(Branch(root, tokens))
        assert drafter.rollout(told, drafted, roots, depth, SAMPLER) == expected


@pytest.mark.parametrize(
    ("committed", "root", "tokens"),
    [
        ([1, 2, 3, 1, 2, 4, 1], 2, (4, 1)),  # 1 2 was last followed by 4
        ([7, 1, 2, 3, 8, 1, 2, 4, 7, 1], 2, (3, 8)),  # 7 1 2 is longer than the later 1 2
        ([1, 2, 3], 9, ()),  # never seen
        ([1, 2, 3], 3, ()),  # seen, but nothing has followed it yet
        ([5], 5, ()),
        ([5, 5], 5, (5,)),
        ([], 1, ()),
    ],
)
def test_the_continuation_of(committed: list[int], root: int, tokens: tuple[int, ...]) -> None:
    drafter = NgramDrafter()
    drafter.prefill(committed)
    found = drafter.rollout([], [], [Root(0, root)], 2, SAMPLER)
    assert found == ([Branch(Root(0, root), tokens)] if tokens else [])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 12))
@settings(deadline=None)
def test_a_review_looks_every_token_up_behind_those_before_it(
    tokens: list[int], latest: int
) -> None:
    latest = min(latest, len(tokens) - 1)
    drafter, again = NgramDrafter(), NgramDrafter()
    assert drafter.review(tokens, latest, SAMPLER) == [
        reference(tokens[:at], tokens[:at], 3, 1) == (tokens[at],)
        for at in range(len(tokens) - latest, len(tokens))
    ]
    again.prefill(tokens)
    roots = [Root(0, token) for token in range(4)]
    asked = [], [], roots, 3, SAMPLER
    assert drafter.rollout(*asked) == again.rollout(*asked)


def test_a_new_answer_forgets_the_last_one() -> None:
    drafter = NgramDrafter()
    drafter.prefill([1, 2, 3])
    drafter.prefill([4, 5])
    assert drafter.rollout([], [], [Root(0, 1), Root(0, 4)], 2, SAMPLER) == [
        Branch(Root(0, 4), (5,))
    ]


def test_a_match_says_how_long_it_is() -> None:
    known = Lookup(3)
    known.learn([1, 2, 3, 4, 9, 2, 3, 5])
    assert known.match([1, 2, 3], 2) == Match(3, (4, 9))
    assert known.match([7, 2, 3], 5) == Match(2, (5,))
    assert known.match([8, 8, 9], 1) == Match(1, (2,))
    assert known.match([8], 1) == Match()
    assert known.match([], 1) == Match()


@pytest.mark.parametrize(
    ("guess", "said", "right"),
    [
        ((1, 2, 3), [1, 2, 3, 4], (3, 3)),
        ((1, 2, 3), [1, 2, 4], (2, 3)),
        ((1, 2, 3), [1, 2], (2, 2)),  # of the last one nothing is known
        ((1, 2), [7, 2], (0, 1)),
        ((), [7, 2], (0, 0)),
    ],
)
def test_what_was_foretold_is_counted_as_far_as_it_is_known(
    guess: tuple[int, ...], said: list[int], right: tuple[int, int]
) -> None:
    assert foretold(guess, said) == right
