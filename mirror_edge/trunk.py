"""The text that a rollout's branches continue, as far as the draft remembers it.

A draft keeps the first few tokens of a long text and the latest ones, so its forwards never take
longer than with `DraftGraph.main` rows, however long the text is (after StreamingLLM, arXiv
2309.17453). What it forgets costs it some agreement; the text never depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["FIRST", "Trunk", "common"]

FIRST = 4
"""Tokens at the start that are never forgotten: attention relies on them."""


class Trunk:
    """Committed and drafted tokens, and which of them have rows in the draft's cache."""

    def __init__(self, tokens: list[int], gone: int) -> None:
        """All `tokens`; `gone` of them, after the first few, are forgotten."""
        self.tokens, self.gone = tokens, gone
        self.rows: Sequence[int] = tokens
        """The remembered ones, in the order of their slots."""
        if gone:
            self.rows = tokens[:FIRST] + tokens[FIRST + gone :]

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def before(self, row: int) -> list[int]:
        """All tokens before row `row`, which comes after the first few; forgotten ones included."""
        return self.tokens[: row + self.gone]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common beginning of two sequences."""
    shortest = min(len(a), len(b))
    if list(a[:shortest]) == list(b[:shortest]):
        return shortest
    return next(i for i in range(shortest) if a[i] != b[i])
