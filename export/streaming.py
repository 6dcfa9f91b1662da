"""A draft with speculative streaming as a torch module, for training.

Speculative Streaming (arXiv 2402.11131), section 3. `mirror_edge.export.streams` is its stored
form; the exported graph computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export.decoder import ARCHITECTURES
from mirror_edge.export.streams import Streams

__all__ = ["StreamingDraft", "stream_mask", "streamable"]


class StreamingDraft(torch.nn.Module):
    """A causal language model whose rows also guess the tokens after the next one.

    Stream k (1..s) of the row at position p starts before the top `layers` layers as
    ``h + offset_k + (h @ down) @ up_k``, h being the row's residual there. It has RoPE position
    p + k, sees the main rows up to its own and its own streams 1..k, and predicts the token at
    p + 1 + k. Main rows never see streams, so the model's own logits do not change.
    """

    def __init__(
        self, model: PreTrainedModel, *, streams: int, layers: int = 1, rank: int = 16
    ) -> None:
        """Wrap `model`, whose weights are shared, with `streams` untrained streams.

        Raises:
            ExportError: for an unsupported architecture, or a sliding window.
            OptionError: for a number that the model cannot have.
        """
        super().__init__()
        config: Any = model.config
        refused = streamable(config, type(model).__name__)
        if refused is not None:
            raise ExportError(f"{type(model).__name__}: {refused}")
        depth, hidden = int(config.num_hidden_layers), int(config.hidden_size)
        for name, given, most in (
            ("streams", streams, None),
            ("layers", layers, depth),
            ("rank", rank, hidden),
        ):
            if given < 1 or (most is not None and given > most):
                allowed = "1 or more" if most is None else f"1 to {most}"
                raise OptionError(f"{name} is {given}; it must be {allowed} for this draft.")
        model.set_attn_implementation("sdpa")  # causal without a mask, and any mask when given one
        self.model = model
        self.streams, self.layers = streams, layers
        self.offset = torch.nn.Parameter(torch.randn(streams, hidden) * 0.02)
        self.down = torch.nn.Parameter(torch.randn(hidden, rank) * hidden**-0.5)
        self.up = torch.nn.Parameter(torch.zeros(streams, rank, hidden))

    def forward(
        self, ids: torch.Tensor, at: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Main logits [B, L, V] and stream logits [B, n, s, V] of `ids` [B, L].

        `at` [n] are the positions whose streams to compute, by default all (n = L).
        """
        model: Any = self.model
        length = ids.shape[1]
        main = torch.arange(length, device=ids.device)
        at = main if at is None else at
        ahead = torch.arange(1, self.streams + 1, device=ids.device)
        stack = model.model.layers[: model.config.num_hidden_layers]
        split = len(stack) - self.layers

        rows = self._through(stack[:split], model.model.embed_tokens(ids), main, None)
        rows = torch.cat([rows, self.starts(rows[:, at]).flatten(1, 2)], dim=1)
        positions = torch.cat([main, (at[:, None] + ahead).flatten()])
        mask = stream_mask(length, at, self.streams)
        rows = self._through(stack[split:], rows, positions, mask)

        logits = model.lm_head(model.model.norm(rows))
        return logits[:, :length], logits[:, length:].unflatten(1, (-1, self.streams))

    @torch.no_grad()
    def continuation(
        self,
        ids: torch.Tensor,
        at: torch.Tensor,
        logits: torch.Tensor,
        choose: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """The draft's logits when it continues by itself from the positions `at` of `ids` [B, L].

        `logits` [B, n, V] are its main logits there; `choose` picks tokens [B, n] from such.
        Entry k - 1 of the result [B, n, s, V] comes after k tokens of its own.
        """
        model: Any = self.model
        stack = model.model.layers[: model.config.num_hidden_layers]
        length, found = ids.shape[1], []
        main = torch.arange(length, device=ids.device)
        own = ids.new_empty(*logits.shape[:2], 0)
        for k in range(1, self.streams + 1):
            own = torch.cat([own, choose(logits)[..., None]], dim=-1)
            rows = model.model.embed_tokens(torch.cat([ids, own.flatten(1)], dim=1))
            ahead = torch.arange(1, k + 1, device=ids.device)
            positions = torch.cat([main, (at[:, None] + ahead).flatten()])
            # Rows of its own tokens see each other as streams do: those before them on their path.
            rows = self._through(stack, rows, positions, stream_mask(length, at, k))
            last = rows[:, length:].unflatten(1, (-1, k))[:, :, -1]
            logits = model.lm_head(model.model.norm(last))
            found.append(logits)
        return torch.stack(found, dim=2)

    def _through(
        self,
        layers: Iterable[Any],
        rows: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """`rows` [B, L, hidden] at `positions` [L] after some `layers`."""
        model: Any = self.model
        rotary = model.model.rotary_emb(rows, position_ids=positions[None])
        for layer in layers:
            rows = layer(rows, attention_mask=mask, position_embeddings=rotary)
        return rows

    def starts(self, residual: torch.Tensor) -> torch.Tensor:
        """The stream rows [B, n, s, hidden] of main rows, from their `residual` [B, n, hidden]."""
        step = torch.einsum("bnr,srh->bnsh", residual @ self.down, self.up)
        return residual[:, :, None] + self.offset + step

    def stored_streams(self) -> Streams:
        """The trained part, as it is stored next to a checkpoint."""
        offset, down, up = (t.detach().float().cpu() for t in (self.offset, self.down, self.up))
        return Streams(offset.numpy(), down.numpy(), up.numpy(), self.layers)

    @classmethod
    def of(cls, model: PreTrainedModel, found: Streams, folder: Path) -> Self:
        """`model` with the streams `found` in `folder`.

        Raises:
            ExportError: when they belong to another model; and as the constructor.
        """
        config: Any = model.config
        found.refuse_unless_for(folder, config.num_hidden_layers, config.hidden_size)
        made = cls(model, streams=found.count, layers=found.layers, rank=found.down.shape[1])
        with torch.no_grad():
            for name in ("offset", "down", "up"):
                getattr(made, name).copy_(torch.from_numpy(getattr(found, name)))
        return made


def streamable(config: Any, architecture: str) -> str | None:
    """Why a model cannot have streams; None when it can."""
    if architecture not in ARCHITECTURES:
        known = ", ".join(name.removesuffix("ForCausalLM") for name in ARCHITECTURES)
        return f"streams are supported for {known} only. Train this draft without streams."
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None)
    if slides:
        return "has a sliding window, which streams do not support. Train it without streams."
    return None


def stream_mask(length: int, at: torch.Tensor, streams: int) -> torch.Tensor:
    """The attention mask, bool [1, 1, L + n·s, L + n·s]: main rows, then the streams of each `at`.

    Entry [i, j] tells whether row i sees row j.
    """
    main = torch.arange(length, device=at.device)
    of = at.repeat_interleave(streams)
    number = torch.arange(streams, device=at.device).repeat(len(at))
    looks, seen = torch.cat([main, of])[:, None], torch.cat([main, of])[None]
    is_stream = torch.arange(length + len(of), device=at.device) >= length
    k = torch.cat([torch.zeros_like(main), number])
    own = is_stream[:, None] & (looks == seen) & (k[:, None] >= k[None])
    return torch.where(is_stream[None], own, looks >= seen)[None, None]
