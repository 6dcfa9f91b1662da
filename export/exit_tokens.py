"""The tokens that an exit head can name: those asked for, or the most common ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from mirror_edge.errors import OptionError
from mirror_edge.export.source import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FULL_VOCABULARY", "common_tokens", "exit_tokens"]

FULL_VOCABULARY = 16384
"""The exit head names all tokens of a vocabulary up to this size, this many of a larger one."""


def exit_tokens(
    asked: Sequence[int] | None,
    tokenizer: Tokenizer,
    source: Source,
    vocabulary: int,
    counts: NDArray[np.float64] | None = None,
) -> NDArray[np.int64] | None:
    """The ids in `asked`, else the most common ones by `counts`, ascending; None for all.

    Raises:
        OptionError: for ids that `vocabulary` does not have.
    """
    if asked is None:
        return common_tokens(tokenizer, source.eos_token_ids, vocabulary, FULL_VOCABULARY, counts)
    named = np.unique(np.asarray(asked, np.int64))
    if not named.size or named[0] < 0 or named[-1] >= vocabulary:
        raise OptionError(f"exit_tokens: must be ids from 0 to {vocabulary - 1}, at least one.")
    return None if named.size == vocabulary else named


def common_tokens(
    tokenizer: Tokenizer,
    eos: list[int],
    vocabulary: int,
    size: int,
    counts: NDArray[np.float64] | None = None,
) -> NDArray[np.int64] | None:
    """The `size` most common tokens and all special ones, ascending; None for all.

    A byte-pair vocabulary lists its merges by frequency, so low ids are common tokens; `counts`
    [vocabulary], if given, decides first.
    """
    if vocabulary <= size:
        return None
    special = {i for i in [*tokenizer.get_added_tokens_decoder(), *eos] if i < vocabulary}
    common = np.arange(size)
    if counts is not None:
        common = np.argsort(-counts, kind="stable")[:size]
    return np.array(sorted({*common.tolist(), *special}), np.int64)
