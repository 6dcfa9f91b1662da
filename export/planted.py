"""Random weights with something planted in them: a language that a pair agrees on by design.

The language is one cycle through the words: each token is always followed by one particular other.
Each token `v` has a random direction, which is its row of the LM head, and the embedding of a token
is the direction of the token after it. The layers in between are random too, and add so little that
the embedding reaches the head.

The draft knows the cycle except after some tokens, where it predicts another word. The target's
exit head is misled by one coordinate of the residual stream, the bait: every embedding carries it,
the head rows of some tokens that are not words (the decoys) respond to nothing else, and the last
layer removes it. The length of a token's embedding decides how many decoys outrank the true next
token at earlier layers; after the last layer it makes no difference.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "CANDIDATES",
    "Language",
    "Planting",
    "draft_planting",
    "make_language",
    "target_planting",
    "weight",
]

CANDIDATES = 8
"""κ of the planted coverage."""
_LOGIT = 24.0
"""Logit of the next token, far above all others: predictable even at temperature 1."""
_STEP = math.log(2.0)
"""Logits between two ranks of the exit head: each rank is half as likely as the one before."""
_DECOYS = (*(rank + 0.5 for rank in range(CANDIDATES)), *(CANDIDATES + 1.0,) * 64)
"""Steps of each below the first rank: one between any two ranks, and as many as are ever asked for
under noise."""
_MISSED = 13.0
"""Steps below the first rank: below all decoys, with a margin for quantisation."""
_NOISE = 0.1
"""What the layers add to the residual stream, relative to the embedding."""
_BAIT, _AT = 1 / 8, 0
"""The bait, relative to the embedding's length, and its coordinate."""


@dataclass(frozen=True)
class Language:
    """What the pair predicts after each token; all arrays are [vocabulary]."""

    after: NDArray[np.int64]
    """The target's next token."""
    guess: NDArray[np.int64]
    """The draft's."""
    rank: NDArray[np.int64]
    """The next token's rank among the exit head's candidates, from 1; 0: not among them."""


@dataclass(frozen=True)
class Planting:
    """What is planted in one model."""

    after: NDArray[np.int64]
    """The next token after each token, [vocabulary]."""
    strength: NDArray[np.float64]
    """The length of its direction in the embedding, [vocabulary]."""
    decoys: range
    """Tokens that respond to the bait; empty for a model without one."""
    key: str
    """The seed of this model's random numbers."""


def make_language(
    vocabulary: int, words: range, agreement: float, coverage: float, seed: int
) -> Language:
    """A cycle through `words`; any other token is a synonym of one of them.

    Draft and target agree after a share `agreement` of the words, and the exit head has the next
    one among its candidates after a share `coverage`, independently. Both hold for every hundred
    words along the cycle, so that an answer of a few hundred tokens shows them.
    """
    rng = np.random.default_rng(seed)
    cycle, count = rng.permutation(np.array(words)), len(words)
    after, guess, rank = (np.zeros(vocabulary, np.int64) for _ in range(3))
    after[cycle] = np.roll(cycle, -1)
    # Neither the word itself nor the next one.
    elsewhere = cycle[(np.arange(count) + rng.integers(2, count, count)) % count]
    guess[cycle] = np.where(_share(agreement, count, rng), after[cycle], elsewhere)
    chances = 0.5 ** np.arange(1, CANDIDATES + 1)
    ranks = rng.choice(np.arange(1, CANDIDATES + 1), count, p=chances / chances.sum())
    rank[cycle] = np.where(_share(coverage, count, rng), ranks, 0)
    others = np.setdiff1d(np.arange(vocabulary), cycle)
    like = rng.choice(cycle, len(others))
    for array in (after, guess, rank):
        array[others] = array[like]
    return Language(after, guess, rank)


def target_planting(language: Language, decoys: range, key: str) -> Planting:
    """What is planted in the target: its exit head has the next token at its rank."""
    steps = np.where(language.rank > 0, language.rank - 1, _MISSED)
    return Planting(language.after, 1.0 - steps * _STEP / _LOGIT, decoys[: len(_DECOYS)], key)


def draft_planting(language: Language, key: str) -> Planting:
    """What is planted in the draft, which has no exit head and no bait."""
    return Planting(language.guess, np.ones(len(language.guess)), range(0), key)


def weight(name: str, shape: tuple[int, ...], layers: int, planting: Planting) -> Tensor:
    """A parameter of a decoder of `layers` layers, by its name in transformers; float32.

    It depends on the arguments only, so parameters can be made one by one.
    """
    if name.endswith("embed_tokens.weight"):
        return _embedding(shape, planting)
    if name.endswith("lm_head.weight"):
        return _head(shape, planting)
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    noise = torch.randn(shape, generator=_generator(planting.key, name))
    if name.endswith("bias"):
        return noise.mul_(0.1)
    last = bool(planting.decoys) and f"layers.{layers - 1}.mlp." in name
    noise /= math.sqrt(shape[1])
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        noise *= _NOISE / math.sqrt(2 * layers)
        noise[_AT] = 0.0
        if last:
            noise[_AT, 0] = -_bait(shape[0]) / _eaten(shape[0])
    elif last:  # gate and up: the first neuron reads the bait
        noise[0] = 0.0
        noise[0, _AT] = 1.0
    return noise


def _directions(shape: tuple[int, ...], planting: Planting) -> Tensor:
    """A direction for each token, of length √hidden, and zero at the bait."""
    rows = torch.randn(shape, generator=_generator(planting.key, "directions"))
    rows[:, _AT] = 0.0
    return rows.mul_(math.sqrt(shape[1]) / rows.norm(dim=1, keepdim=True))


def _embedding(shape: tuple[int, ...], planting: Planting) -> Tensor:
    rows = _directions(shape, planting)[torch.from_numpy(planting.after)]
    rows *= torch.from_numpy(planting.strength).float()[:, None]
    if planting.decoys:
        rows[:, _AT] = _bait(shape[1])
    return rows


def _head(shape: tuple[int, ...], planting: Planting) -> Tensor:
    rows = _directions(shape, planting).mul_(_LOGIT / shape[1])
    for token, steps in zip(planting.decoys, _DECOYS, strict=False):
        rows[token] = 0.0
        rows[token, _AT] = (_LOGIT - steps * _STEP) / _bait(shape[1])
    return rows


def _bait(hidden: int) -> float:
    return _BAIT * math.sqrt(hidden)


def _eaten(hidden: int) -> float:
    """The output of the neuron that reads the bait (by gate and up alike), after the norm."""
    read = _bait(hidden) / math.sqrt(1.0 + _BAIT**2)
    return read * read / (1.0 + math.exp(-read))


def _generator(key: str, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{key} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _share(share: float, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A share `share` of every hundred of `count` entries, at random."""
    order = np.lexsort((rng.random(count), np.arange(count) // 100))
    chosen = np.zeros(count, np.bool_)
    chosen[order] = np.diff(np.floor(share * np.arange(count + 1) + 1e-9)) > 0
    return chosen
