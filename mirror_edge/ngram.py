"""Guesses without a model: what followed the last time these tokens occurred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mirror_edge.hypotheses import Branch, Root

if TYPE_CHECKING:
    from mirror_edge.lanes import Dropped
    from mirror_edge.sampling import Sampler

__all__ = ["Lookup", "Match", "NgramDrafter", "foretold"]


class Match(NamedTuple):
    """The longest ending of a text that occurred before, and what followed it then."""

    length: int = 0
    """In tokens; 0 for none."""
    tokens: tuple[int, ...] = ()


class Lookup:
    """Where each n-gram of a text last ended. The longest match wins, then the latest."""

    def __init__(self, longest: int = 3) -> None:
        """Index n-grams of up to `longest` tokens."""
        self.longest = longest
        self.text: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}

    def learn(self, tokens: Sequence[int]) -> None:
        """Append `tokens` to the text; an n-gram is indexed once it has a successor."""
        for token in tokens:
            end = len(self.text)
            for n in range(1, min(self.longest, end) + 1):
                self._ends[tuple(self.text[end - n : end])] = end
            self.text.append(token)

    def match(self, tail: Sequence[int], depth: int) -> Match:
        """How a text that ends with `tail` may continue, by up to `depth` tokens."""
        for n in range(min(self.longest, len(tail)), 0, -1):
            end = self._ends.get(tuple(tail[-n:]))
            if end is not None:
                return Match(n, tuple(self.text[end : end + depth]))
        return Match()


def foretold(guess: Sequence[int], actual: Sequence[int]) -> tuple[int, int]:
    """How many tokens of `guess` were right, and of how many that is known."""
    right = 0
    for one, other in zip(guess, actual, strict=False):
        if one != other:
            return right, right + 1
        right += 1
    return right, right


class NgramDrafter:
    """A `Drafter` that looks up the latest tokens in prompt and answer."""

    def __init__(self, longest: int = 3) -> None:
        """Match up to `longest` tokens."""
        self._lookup = Lookup(longest)

    def prefill(self, tokens: Sequence[int]) -> None:
        """Forget the last answer and index `tokens`."""
        self._lookup = Lookup(self._lookup.longest)
        self._lookup.learn(tokens)

    def review(self, tokens: Sequence[int], latest: int, sampler: Sampler) -> list[bool]:
        """See `Drafter.review`."""
        del sampler  # Look-up proposes the same tokens whatever the noise.
        first = max(1, len(tokens) - latest)
        self.prefill(tokens[:first])
        known, right = self._lookup, []
        for token in tokens[first:]:
            right.append(known.match(known.text[-known.longest :], 1).tokens == (token,))
            known.learn([token])
        return right

    def rollout(
        self,
        committed: Sequence[int],
        drafted: Sequence[int],
        roots: Sequence[Root],
        depth: int,
        sampler: Sampler,  # noqa: ARG002 - look-up proposes the same tokens whatever the noise
        dropped: Dropped | None = None,  # noqa: ARG002 - it returns at once
    ) -> list[Branch]:
        """Continue the roots whose last tokens occurred before; see `Drafter.rollout`."""
        known = self._lookup
        known.learn(committed)
        branches = []
        for root in roots:
            tail = [*known.text[-known.longest :], *drafted[: root.row], root.token]
            if tokens := known.match(tail, depth).tokens:
                branches.append(Branch(root, tokens))
        return branches

    def close(self) -> None:
        """Nothing to release."""
