"""A sample of text files: the texts that an exit head is calibrated and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.errors import DataError
from mirror_edge.export.texts import Document, documents, rendered

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.text import Text

    Ids = NDArray[np.int64]

__all__ = ["HELD_OUT", "divide", "draw", "texts_of"]

HELD_OUT = 8192
"""Rows that coverage is measured on, if there are enough."""
_FEWEST = 512
"""Fewest tokens for a calibration."""
_DOCUMENTS = 4096
_LENGTH = 512
"""The most tokens of a text."""


def draw(files: Sequence[Path]) -> list[Document]:
    """Documents drawn evenly from all of `files`, shuffled; the same ones every time.

    Raises:
        DataError: naming the file and line that cannot be used.
    """
    random = np.random.default_rng(0)
    kept: list[Document] = []
    for count, document in enumerate(documents(files)):
        if count < _DOCUMENTS:
            kept.append(document)
        elif (place := int(random.integers(count + 1))) < _DOCUMENTS:
            kept[place] = document
    return [kept[i] for i in random.permutation(len(kept))]


def texts_of(drawn: Sequence[Document], text: Text, context: int, rows: int) -> list[list[Ids]]:
    """The first documents, `rows` tokens in total, each cut into texts of limited length.

    Raises:
        DataError: naming the document that the model's chat template rejects.
    """
    length = min(_LENGTH, context)
    found: list[list[Ids]] = []
    for document in drawn:
        tokens = _tokens(document, text)[:rows]
        if len(tokens):
            found.append([tokens[at : at + length] for at in range(0, len(tokens), length)])
        rows -= len(tokens)
        if rows <= 0:
            break
    return found


def _tokens(document: Document, text: Text) -> Ids:
    plain = isinstance(document.content, str)
    written = document.content if plain else rendered(document, text)
    return np.array(text.encode(str(written), add_special_tokens=plain), np.int64)


def divide(sampled: Sequence[Sequence[Ids]]) -> tuple[list[Ids], list[Ids]]:
    """The texts to measure on, from the first documents, and those to fit on.

    Raises:
        DataError: for too little text.
    """
    sizes = [sum(map(len, document)) for document in sampled]
    if len(sampled) < 2 or sum(sizes) < _FEWEST:
        raise DataError(
            f"--calibrate: {sum(sizes):,} tokens in {len(sampled)} documents are too few; "
            f"at least {_FEWEST} in 2 are needed. Give more text."
        )
    wanted = min(HELD_OUT, sum(sizes) // 6)
    reached = (i for i, so_far in enumerate(accumulate(sizes), 1) if so_far >= wanted)
    count = min(next(reached), len(sampled) - 1)
    held_out, fitted = (list(chain(*part)) for part in (sampled[:count], sampled[count:]))
    return held_out, fitted
