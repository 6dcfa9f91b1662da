"""The parts of a decoder that become Core ML programs, with their inputs and outputs.

The target's parts write keys and values at the positions that each call names, so tokens are rolled
back by naming an earlier position. Core ML keeps states in float16, so the cache of a target in
float32 is an input and output, as the draft's always is. The draft's rows are in channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirror_edge.export.decoder import UNSEEN, Attend, Decoder, head_of
from mirror_edge.export.exit_head import Exit
from mirror_edge.export.stream_rows import StreamRows

__all__ = ["DraftPart", "ExitHead", "Prefix", "Suffix"]


class _TargetPart(nn.Module):
    """Some of a target's layers, with their cache.

    A cache is [layers, kv_heads, capacity, head_size]. `keys` and `values` are states of the
    program; without states they are inputs, and those of the fed rows are outputs.
    """

    slots: Tensor
    keys: Tensor
    values: Tensor

    def __init__(self, decoder: Decoder, layers: range, capacity: int, *, states: bool) -> None:
        super().__init__()
        self.decoder, self.states, self.first = decoder, states, layers.start
        self.part = [decoder.layers[index] for index in layers]
        spec = decoder.spec
        self.cache = (len(layers), spec.kv_heads, capacity, spec.head_size)
        self.register_buffer("slots", torch.arange(capacity, dtype=torch.int32))
        if states:
            self.register_buffer("keys", torch.zeros(self.cache))
            self.register_buffer("values", torch.zeros(self.cache))

    def through(
        self, rows: Tensor, start: Tensor, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Rows [1, S, hidden] at positions `start`… after the layers, and the other outputs."""
        count = rows.shape[1]
        positions = start + torch.arange(count, dtype=torch.int32)
        unseen = (self.slots > positions[:, None]).to(rows.dtype) * UNSEEN
        mask = torch.cat([unseen] * self.decoder.spec.group)[None, None]
        begin = start[0]
        end = begin + count
        made: list[tuple[Tensor, Tensor]] = []

        def attend(index: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            at = index - self.first
            if self.states:
                self.keys[at : at + 1, :, begin:end] = keys
                self.values[at : at + 1, :, begin:end] = values
                known = self.keys[at : at + 1], self.values[at : at + 1]
            else:
                made.append((keys, values))
                known = past[0][at : at + 1].clone(), past[1][at : at + 1].clone()
                known[0][:, :, begin:end] = keys
                known[1][:, :, begin:end] = values
            return F.scaled_dot_product_attention(queries, *known, attn_mask=mask)

        rotary = self.decoder.rotary(positions)
        for layer in self.part:
            rows = layer(rows, rotary, attend)
        return rows, tuple(torch.cat(part) for part in zip(*made, strict=True))


class Prefix(_TargetPart):
    """The embedding and layers 1..E of a target."""

    def __init__(self, decoder: Decoder, exit_layer: int, capacity: int, *, states: bool) -> None:
        """Cut after `exit_layer`."""
        super().__init__(decoder, range(exit_layer), capacity, states=states)

    def forward(self, input_ids: Tensor, start: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """From tokens [1, S] at positions `start` [1]… to the residual stream [1, S, hidden]."""
        rows, beside = self.through(self.decoder.embed(input_ids), start, past)
        return rows, *beside


class Suffix(_TargetPart):
    """Layers E+1..N of a target, the final norm and the head."""

    def __init__(
        self, decoder: Decoder, exit_layer: int, capacity: int, *, states: bool, chosen: bool
    ) -> None:
        """Cut after `exit_layer`; with `chosen`, the head only reads the rows asked for."""
        layers = range(exit_layer, decoder.spec.layers)
        super().__init__(decoder, layers, capacity, states=states)
        self.chosen = chosen

    def forward(self, hidden: Tensor, start: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """From the residual stream [1, S, hidden] to logits [1, S, vocabulary].

        With `chosen`, `more` starts with `rows` [n], indices of the rows whose logits to return.
        """
        rows, beside = self.through(hidden, start, more[1:] if self.chosen else more)
        if self.chosen:
            rows = rows.index_select(1, more[0])
        return self.decoder.head(rows), *beside


class ExitHead(nn.Module):
    """The target's own norm and head, with a correction if there is one."""

    tokens: Tensor | None

    def __init__(self, decoder: Decoder, leave: Exit, count: int) -> None:
        """For the best `count` of the tokens that `leave` can name."""
        super().__init__()
        self.norm, self.head, self.count = decoder.norm, decoder.lm_head, count
        tokens, correction = leave.tokens, leave.correction
        chosen = None if tokens is None else torch.from_numpy(tokens)
        if chosen is not None:
            self.head = head_of(decoder.lm_head.weight[chosen])
        self.register_buffer("tokens", None if chosen is None else chosen.int())
        self.low = self.step = None
        if correction is not None:
            self.low = head_of(torch.from_numpy(correction.a.T.copy()))
            self.step = head_of(torch.from_numpy(correction.b.T.copy()))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities [1, S, count], best first, of the rows [1, S, hidden]."""
        rows = self.norm(hidden)
        if self.low is not None and self.step is not None:
            rows = rows + self.step(F.silu(self.low(rows)))
        logits = self.head(rows)
        best, ids = logits.topk(self.count)
        # Spelled out: in float16, the logarithm of a small probability would be lost.
        top = best[..., :1]
        total = (logits - top).exp().sum(-1, keepdim=True)
        named = ids.int() if self.tokens is None else self.tokens[ids]
        return named, best - top - total.log()


class DraftPart(nn.Module):
    """Some of a draft's layers, with rows in channels; the first part embeds the tokens."""

    def __init__(
        self, decoder: Decoder, layers: range, *, head: bool, streams: StreamRows | None = None
    ) -> None:
        """Some `layers` of `decoder`; after the last one comes the head, or nothing."""
        super().__init__()
        self.decoder, self.layers, self.head, self.streams = decoder, layers, head, streams
        self.scale = decoder.spec.head_size**-0.5

    def forward(
        self, rows: Tensor, positions: Tensor, bias: Tensor, past_keys: Tensor, past_values: Tensor
    ) -> tuple[Tensor, ...]:
        """Tokens [1, W], or rows [1, hidden, 1, W] of the previous part, through the layers.

        `bias` [1, 1, W, C + W] is added to the scores over C cached rows and W fed ones; a cache
        is [layers, kv_heads, C, head_size]. Returns the rows, or with the head the logits [pieces,
        size, 1, W], or neither after the last layer without the head; then the fed rows' keys and
        values [layers, kv_heads, W, head_size]. With streams there are W·(1 + s) rows and logits.
        """
        made: list[tuple[Tensor, Tensor]] = []
        streams, spec, cached = self.streams, self.decoder.spec, past_keys.shape[2]
        joining = spec.layers if streams is None else spec.layers - streams.layers
        width = len(positions)

        def attends(bias: Tensor) -> Attend:
            mask = torch.cat([bias] * spec.group, dim=2)

            def attend(index: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
                at = index - self.layers.start
                made.append((keys[:, :, :width], values[:, :, :width]))
                old_keys, old_values = past_keys[at : at + 1], past_values[at : at + 1]
                # Concatenating scores is cheaper than concatenating a long cache and a few rows.
                both = [queries @ old_keys.transpose(2, 3), queries @ keys.transpose(2, 3)]
                seen = torch.softmax(torch.cat(both, dim=3) * self.scale + mask, dim=3)
                return seen[..., :cached] @ old_values + seen[..., cached:] @ values

            return attend

        if self.layers.start == 0:
            rows = self.decoder.embed(rows)
        attend, rotary = attends(bias), self.decoder.rotary(positions)
        for index in self.layers:
            if streams is not None and index >= joining:
                if index == joining:
                    rows = streams.join(rows)
                attend = attends(streams.mask(bias))
                rotary = self.decoder.rotary(streams.positions(positions))
            rows = self.decoder.layers[index](rows, rotary, attend)
        cache = tuple(torch.cat(part) for part in zip(*made, strict=True))
        if self.head:
            return self.decoder.head(rows), *cache
        return cache if self.layers.stop == spec.layers else (rows, *cache)
