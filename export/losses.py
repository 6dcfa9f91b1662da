"""Losses of a draft: the text, the target's distribution over it, and its streams' guesses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from mirror_edge.export.streaming import StreamingDraft
from mirror_edge.export.training import Loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "EXIT_WEIGHT",
    "distillation_loss",
    "early_exit_loss",
    "streaming_loss",
    "text_loss",
]

EXIT_WEIGHT = 0.2
"""Weight of each exit layer's loss (the last layer's is 1); after LayerSkip, arXiv 2404.16710."""
_EXIT_DENSITY = 0.125
"""Share of positions whose exits are trained in a step."""
_DENSITY = 0.25
"""Share of positions whose streams are trained in a step: neighbours teach much the same."""


def text_loss(model: Callable[..., Any]) -> Loss:
    """Cross-entropy with the next token."""

    def loss(windows: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    return loss


def early_exit_loss(model: PreTrainedModel, call: Callable[..., Any], exits: Sequence[int]) -> Loss:
    """`text_loss`, plus each exit layer's cross-entropy with the model's final distribution.

    An exit is read as the exit head reads it: through the final norm and the output embeddings.
    `call` is the model, compiled or not.
    """
    decoder: Any = model
    norm, head = decoder.model.norm, decoder.lm_head

    def loss(windows: torch.Tensor) -> torch.Tensor:
        out = call(input_ids=windows[:, :-1], use_cache=False, output_hidden_states=True)
        logits: torch.Tensor = out.logits.float()
        total = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        rows = torch.randperm(logits.shape[1])[: max(1, int(logits.shape[1] * _EXIT_DENSITY))]
        wanted = logits[:, rows.to(logits.device)].detach()
        for layer in exits:
            early = head(norm(out.hidden_states[layer][:, rows.to(logits.device)]))
            total = total + EXIT_WEIGHT * _cross_entropy(early, wanted)
        return total

    return loss


def distillation_loss(
    draft: torch.nn.Module, target: Callable[..., Any], stream_weight: float
) -> Loss:
    """Cross-entropy with the target's distribution, which is forward KL plus a constant.

    Each stream of a `StreamingDraft` adds its own loss, weighted by `stream_weight`.
    """

    def loss(windows: torch.Tensor) -> torch.Tensor:
        ids = windows[:, :-1]
        with torch.no_grad():
            wanted = target(input_ids=ids, use_cache=False).logits
        if not isinstance(draft, StreamingDraft):
            return _cross_entropy(draft(input_ids=ids, use_cache=False).logits, wanted)
        main, streams = _predicted(draft, ids)
        return _cross_entropy(main, wanted) + stream_weight * streams

    return loss


def streaming_loss(draft: StreamingDraft) -> Loss:
    """Cross-entropy of the streams alone."""

    def loss(windows: torch.Tensor) -> torch.Tensor:
        return _predicted(draft, windows[:, :-1])[1]

    return loss


def _predicted(draft: StreamingDraft, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Main logits of `ids` [B, L], and the sum over the streams of their cross-entropy.

    Streams serve branches, which the draft generates itself. So they learn to predict how the draft
    would continue from some positions, not how the text continues.
    """
    count = max(1, int(ids.shape[1] * _DENSITY))
    at = torch.randperm(ids.shape[1])[:count].sort().values.to(ids.device)
    main, ahead = draft(ids, at)
    wanted = draft.continuation(ids, at, main[:, at], _picked)
    losses = [_cross_entropy(ahead[:, :, k], wanted[:, :, k]) for k in range(draft.streams)]
    return main, torch.stack(losses).sum()


def _picked(logits: torch.Tensor) -> torch.Tensor:
    """Tokens [B, n] as branches choose them: half of the windows at temperature 0, half at 1."""
    noise = -torch.empty_like(logits).exponential_().log()
    warm = torch.rand(len(logits), 1, 1, device=logits.device) < 0.5
    return (logits + warm * noise).argmax(dim=-1)


def _cross_entropy(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Between two models' rows [..., V], cut to the narrower of their padded vocabularies."""
    width = min(logits.shape[-1], wanted.shape[-1])
    ours, theirs = (rows[..., :width].flatten(0, -2).float() for rows in (logits, wanted))
    return F.cross_entropy(ours, theirs.softmax(dim=-1))
