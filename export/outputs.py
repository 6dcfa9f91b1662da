"""A target's own outputs: continuations of prompts, and a pool of them to train on.

A draft is accepted or rejected on the target's own text, so that is the text to learn from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedModel

from mirror_edge.export.hardware import autocast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tokens = NDArray[np.unsignedinteger[Any]]

__all__ = ["Noise", "OwnOutputs", "continuations"]


_BATCH, _LENGTH = 64, 192
"""Answers generated at once, and the most tokens of each."""
_REUSE = 8.0
"""The most times that an own output is seen."""


class Noise(LogitsProcessor):
    """Gumbel noise by seed and position: the most likely token is then a sample.

    Two models with one seed sample with the same noise.
    """

    def __init__(self, temperatures: torch.Tensor, seed: int) -> None:
        """`temperatures` [batch], 0 for greedy rows."""
        self.temperatures, self.seed = temperatures, seed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The `scores` [batch, V] with noise, for the token after `input_ids`."""
        return self.at(input_ids.shape[1], scores)

    def at(self, position: int, scores: torch.Tensor) -> torch.Tensor:
        """The `scores` [batch, V] with the noise of the token at `position`."""
        warm = self.temperatures.nonzero()[:, 0]
        scores = scores.float()
        if len(warm) == 0:
            return scores
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + position)
        uniform = torch.rand(len(warm), scores.shape[1], generator=random).clamp_(1e-9, 1 - 1e-7)
        noise = self.temperatures[warm, None] * -(-uniform.log()).log()
        return scores.index_add(0, warm.to(scores.device), noise.to(scores.device))


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    length: int,
    temperatures: torch.Tensor,
    *,
    ends: Sequence[int] = (),
    seed: int = 0,
) -> list[Tokens]:
    """At most `length` tokens that `model` generates for each of `prompts`, up to one of `ends`."""
    longest, kind = max(len(prompt) for prompt in prompts), prompts[0].dtype
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, longest - len(prompt) :] = 1
    pad = ends[0] if ends else 0
    with autocast(model.device):
        said = model.generate(  # type: ignore[operator]
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=length,
            do_sample=False,
            logits_processor=[Noise(temperatures, seed)],
            eos_token_id=list(ends) or None,
            pad_token_id=pad,
        )
    rows = said[:, longest:].cpu().numpy()
    return [_until(row, ends).astype(kind) for row in rows]


def _until(row: NDArray[np.int64], ends: Sequence[int]) -> NDArray[np.int64]:
    at = np.flatnonzero(np.isin(row, ends))
    return row[: at[0] + 1] if len(at) else row


class OwnOutputs:
    """Windows of the given text and of the target's own outputs, as far as there are any.

    The outputs grow during training, within a share of its time; half of them are greedy, half are
    samples at temperature 1.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        text: Tokens,
        prompts: Sequence[Tokens],
        *,
        ends: Sequence[int],
        part: float = 0.5,
        time_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        """A pool for `target`'s answers to those of `prompts` (shortest first) that are short.

        A share `part` of the windows are own outputs, unless their tokens would be seen more than
        `_REUSE` times; at most a share `time_share` of the time is spent generating them.
        """
        config: Any = target.config
        room = config.max_position_embeddings // 2
        self.target, self.text, self.ends = target, text, ends
        self.length = min(_LENGTH, room)
        self.prompts = [prompt for prompt in prompts if len(prompt) <= min(2 * _LENGTH, room)]
        self.part, self.time_share = part if self.prompts else 0.0, time_share
        self.seed = seed
        self.own: list[Tokens] = []
        self.count = self.drawn = self.rounds = 0
        self.making, self.elapsed = 0.0, 0.0
        self._last: float | None = None

    def windows(self, random: np.random.Generator, batch: int, length: int) -> Tokens:
        """`batch` windows of `length` + 1 tokens."""
        now = time.monotonic()
        self.elapsed += now - (self._last or now)
        self._last = now
        if self.part and self.making <= self.time_share * self.elapsed:
            self._grow(random)
            self.making += time.monotonic() - now
        wanted = round(batch * self.part)
        if self.count <= length or self.drawn + wanted * length > _REUSE * self.count:
            wanted = 0
        self.drawn += wanted * length
        own = self._joined() if wanted else self.text
        return np.stack(
            [
                self._window(random, own if row < wanted else self.text, length)
                for row in range(batch)
            ]
        )

    def _window(self, random: np.random.Generator, tokens: Tokens, length: int) -> Tokens:
        start = random.integers(0, len(tokens) - length)
        return tokens[start : start + length + 1]

    def _joined(self) -> Tokens:
        if len(self.own) > 1:
            self.own = [np.concatenate(self.own)]
        return self.own[0]

    def _grow(self, random: np.random.Generator) -> None:
        """Add answers to prompts of similar length, so that there is little padding."""
        batch = min(_BATCH, len(self.prompts))
        start = random.integers(0, len(self.prompts) - batch + 1)
        prompts = [self.prompts[start + i] for i in random.permutation(batch)]
        said = continuations(
            self.target,
            prompts,
            self.length,
            (torch.arange(batch) % 2).float(),
            ends=self.ends,
            seed=self.seed + self.rounds,
        )
        self.rounds += 1
        for prompt, answer in zip(prompts, said, strict=True):
            self.own += [prompt, answer]
            self.count += len(prompt) + len(answer)

    def state(self) -> dict[str, Any]:
        """The outputs and the counts."""
        own = torch.from_numpy(self._joined().astype(np.int64)) if self.own else None
        names = ("count", "drawn", "rounds", "making", "elapsed")
        return {"own": own, **{name: getattr(self, name) for name in names}}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        own = state["own"]
        self.own = [] if own is None else [own.cpu().numpy().astype(self.text.dtype)]
        for name in ("count", "drawn", "rounds", "making", "elapsed"):
            setattr(self, name, state[name])
