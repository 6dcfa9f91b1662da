"""How well a draft predicts its target, on the target's own answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from transformers import PreTrainedModel

from mirror_edge.export.drafts import Draft, plain
from mirror_edge.export.losses import distillation_loss, text_loss
from mirror_edge.export.outputs import Noise, continuations
from mirror_edge.export.streaming import StreamingDraft
from mirror_edge.export.texts import Corpus
from mirror_edge.export.training import held_out_loss

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tokens = NDArray[np.unsignedinteger[Any]]

__all__ = [
    "Acceptance",
    "Exam",
    "HeldOut",
    "Losses",
    "StreamAccuracy",
    "agreement",
    "forwards",
    "measure",
    "measure_streams",
]

_AT_ONCE = 16
"""Sequences per forward."""
_PROMPTS, _ANSWER = 96, 128
"""Held-out prompts, and the most tokens of each answer."""
_OPENING = 32
"""Tokens of held-out text used as the prompt when there are no prompts."""
_NUMBERS = 2**28
"""The most logits that a draft is measured on: a large vocabulary gets fewer prompts."""
_MEASURED = 6
"""Parts of all measurements."""
_TOKENS = 65536
"""Held-out tokens that the losses are measured on."""


@dataclass(frozen=True)
class Acceptance:
    """How often a draft's token is accepted, given that all tokens before it were."""

    greedy: float
    """Temperature 0."""
    shared: float
    """Temperature 1, both sample with the same noise."""
    greedy_draft: float
    """Temperature 1, the draft takes its most likely token."""
    independent: float
    """Temperature 1, both sample independently."""
    best: float
    """Temperature 1, the theoretical maximum: 1 - total variation."""


@dataclass(frozen=True)
class StreamAccuracy:
    """How well the streams predict the draft's own next tokens, within held-out answers."""

    right: tuple[float, ...]
    """For each stream, how often its guess is the draft's own later token."""
    forwards: float
    """Mean forwards for a branch of `branch` tokens; the first one gives one token."""
    branch: int


@dataclass(frozen=True)
class Losses:
    """Cross-entropies on held-out text, in nats per token."""

    target: float
    """The target's, with the text."""
    draft: float
    """The draft's, with the text."""
    distillation: float
    """The draft's, with the target's distribution."""


@dataclass(frozen=True)
class HeldOut:
    """A target's answers to held-out prompts, padded on the right."""

    ids: torch.Tensor
    """[n, length]: prompt, answer, padding."""
    answered: torch.Tensor
    """[n, length - 1] bool: whether the row predicts a token of the answer."""

    @classmethod
    def of(
        cls,
        target: PreTrainedModel,
        prompts: Sequence[Tokens],
        *,
        temperature: float,
        length: int,
        ends: Sequence[int],
    ) -> Self:
        """Let `target` answer the `prompts` by at most `length` tokens each."""
        temperatures = torch.full((len(prompts),), temperature)
        said = continuations(target, prompts, length, temperatures, ends=ends, seed=1)
        whole = [np.concatenate(both).astype(np.int64) for both in zip(prompts, said, strict=True)]
        ids = torch.zeros(len(whole), max(map(len, whole)), dtype=torch.int64)
        answered = torch.zeros(len(whole), ids.shape[1] - 1, dtype=torch.bool)
        for row, (prompt, tokens) in enumerate(zip(prompts, whole, strict=True)):
            ids[row, : len(tokens)] = torch.from_numpy(tokens)
            answered[row, len(prompt) - 1 : len(tokens) - 1] = True
        return cls(ids.to(target.device), answered.to(target.device))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`ids` and `answered`, a few sequences at a time."""
        yield from zip(self.ids.split(_AT_ONCE), self.answered.split(_AT_ONCE), strict=True)

    def text(self) -> Tokens:
        """All sequences in one row, without padding."""
        last = [int(row.nonzero()[-1]) + 2 if row.any() else 0 for row in self.answered]
        rows = [ids[:end] for ids, end in zip(self.ids.cpu().numpy(), last, strict=True)]
        joined: Tokens = np.concatenate(rows).astype(np.uint32)
        return joined


@dataclass(frozen=True)
class Exam:
    """What a draft is measured on."""

    tokens: Tokens
    """Held-out text."""
    greedy: HeldOut
    sampled: HeldOut
    """At temperature 1."""

    @classmethod
    def of(cls, target: PreTrainedModel, corpus: Corpus, ends: Sequence[int]) -> Self:
        """Let `target` answer some of the prompts of `corpus`."""
        config: Any = target.config
        room = config.max_position_embeddings - _ANSWER
        fitting = [prompt for prompt in corpus.prompts if len(prompt) <= min(room, 4 * _ANSWER)]
        fitting = fitting or [corpus.tokens[:_OPENING]]
        count = max(1, min(_PROMPTS, _NUMBERS // (config.vocab_size * _ANSWER)))
        chosen = [fitting[i] for i in np.linspace(0, len(fitting) - 1, count).astype(int)]
        answers = [
            HeldOut.of(target, chosen, temperature=temperature, length=_ANSWER, ends=ends)
            for temperature in (0.0, 1.0)
        ]
        return cls(corpus.tokens[:_TOKENS], *answers)

    def agreement(self, draft: Draft) -> float:
        """As `agreement`, on the greedy answers."""
        return agreement(plain(draft), self.greedy)

    def grade(
        self, draft: Draft, target: PreTrainedModel, on_share: Callable[[float], None]
    ) -> tuple[Losses, Acceptance, dict[str, StreamAccuracy]]:
        """All measurements of `draft`; those of its streams by temperature, "0" and "1".

        `on_share` hears how much is done, 0 to 1.
        """
        model, streams, found = plain(draft), dict[str, StreamAccuracy](), []
        losses = (text_loss(target), text_loss(model), distillation_loss(model, target, 0.0))
        for done, loss in enumerate(losses):
            on_share(done / _MEASURED)
            found.append(held_out_loss(loss, self.tokens, target.device))
        on_share(3 / _MEASURED)
        acceptance = measure(model, target, self.greedy, self.sampled)
        if isinstance(draft, StreamingDraft):
            on_share(4 / _MEASURED)
            streams["0"] = measure_streams(draft, self.greedy.text(), temperature=0.0)
            on_share(5 / _MEASURED)
            streams["1"] = measure_streams(draft, self.sampled.text(), temperature=1.0)
        on_share(1.0)
        return Losses(*found), acceptance, streams


@torch.no_grad()
def agreement(draft: PreTrainedModel, greedy: HeldOut) -> float:
    """How often the draft's most likely token is the target's, at temperature 0."""
    right = count = 0
    for ids, answered in greedy:
        found = _logits(draft, ids)[answered].argmax(-1)
        right += int((found == ids[:, 1:][answered]).sum())
        count += len(found)
    return right / max(count, 1)


@torch.no_grad()
def measure(
    draft: PreTrainedModel, target: PreTrainedModel, greedy: HeldOut, sampled: HeldOut
) -> Acceptance:
    """The acceptance of `draft` on the target's answers at temperature 0 and 1."""
    sums = np.zeros(4)
    count = 0
    random = torch.Generator().manual_seed(0)
    for ids, answered in sampled:
        ours, theirs = _logits(draft, ids)[answered], _logits(target, ids)[answered]
        width = min(ours.shape[-1], theirs.shape[-1])
        ours, theirs = ours[:, :width].log_softmax(-1), theirs[:, :width].log_softmax(-1)
        noise = -torch.empty(ours.shape).exponential_(generator=random).log().to(ours.device)
        likeliest = ours.argmax(-1, keepdim=True)
        shared = (ours + noise).argmax(-1) == (theirs + noise).argmax(-1)
        q, p = ours.exp(), theirs.exp()
        for i, value in enumerate((shared, p.gather(1, likeliest), p * q, torch.minimum(p, q))):
            sums[i] += float(value.float().sum())
        count += len(ours)
    shares = (float(value) for value in sums / max(count, 1))
    return Acceptance(agreement(draft, greedy), *shares)


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=ids[:, :-1], use_cache=False).logits
    return out.float()


@torch.no_grad()
def measure_streams(
    draft: StreamingDraft,
    text: Tokens,
    *,
    temperature: float,
    branch: int = 7,
    count: int = 128,
    context: int = 64,
) -> StreamAccuracy:
    """Continue `text` with the draft by `branch` tokens at `count` positions, and compare what its
    streams predicted.
    """
    context = min(context, len(text))
    starts = np.linspace(0, len(text) - context, count).astype(np.int64)
    windows = np.stack([text[s : s + context] for s in starts]).astype(np.int64)
    ids = torch.from_numpy(windows).to(draft.offset.device)
    noise = Noise(torch.full((count,), temperature), seed=1)
    said, past, step = ids, dict[str, Any](), ids
    for _ in range(branch):
        out = draft.model(input_ids=step, use_cache=True, **past)
        name = "cache" if "cache" in out else "past_key_values"  # By the version of transformers.
        past = {name: out[name]}
        step = noise.at(said.shape[1], out.logits[:, -1]).argmax(-1, keepdim=True)
        said = torch.cat([said, step], dim=1)
    own = said[:, context:]
    rows = torch.arange(context - 1, context + branch - 1, device=ids.device)
    ahead = torch.cat([draft(part, rows)[1] for part in said[:, :-1].split(_AT_ONCE)])
    guesses = torch.empty(ahead.shape[:3], dtype=torch.int64, device=ids.device)
    for i, k in np.ndindex(branch, draft.streams):
        guesses[:, i, k] = noise.at(context + i + k + 1, ahead[:, i, k]).argmax(-1)
    right = [(guesses[:, :-k, k - 1] == own[:, k:]).float() for k in range(1, draft.streams + 1)]
    return StreamAccuracy(
        tuple(float(each.mean()) for each in right if each.numel()),
        float(forwards(own, guesses).float().mean()),
        branch,
    )


def forwards(own: torch.Tensor, guesses: torch.Tensor) -> torch.Tensor:
    """Forwards until a branch's tokens `own` [n, γ] are known, [n].

    `guesses` [n, γ, s] are the streams of the rows preceding each token: stream k of row i
    guesses ``own[:, i + k]``. A forward checks the guesses of the last right row.
    """
    branch = own.shape[1]
    needed = []
    for said, guessed in zip(own.tolist(), guesses.tolist(), strict=True):
        known, count = 1, 1
        while known < branch:
            ahead = zip(guessed[known - 1], said[known:], strict=False)
            known += 1 + _leading(guess == token for guess, token in ahead)
            count += 1
        needed.append(count)
    return torch.tensor(needed)


def _leading(right: Iterable[bool]) -> int:
    return sum(1 for _ in takewhile(bool, right))
