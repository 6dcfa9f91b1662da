"""The streams of a draft's rows in torch, in channels; see docs/streaming.md.

After W rows come the first streams of all of them, then the second ones, and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirror_edge.export.decoder import UNSEEN, Attend, Decoder, head_of
from mirror_edge.export.streams import Streams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

__all__ = ["StreamRows", "stream_logits"]


class StreamRows(nn.Module):
    """The streams that are added to `width` rows before the draft's top `layers` layers."""

    offset: Tensor
    own: Tensor

    def __init__(self, streams: Streams, width: int) -> None:
        """`streams` as they were trained."""
        super().__init__()
        self.layers, self.count, self.width = streams.layers, streams.count, width
        down, up = torch.from_numpy(streams.down), torch.from_numpy(streams.up)
        self.down = head_of(down.T.contiguous()[:, :, None, None])
        self.up = head_of(up.transpose(1, 2).flatten(0, 1).contiguous()[:, :, None, None])
        self.register_buffer("offset", torch.from_numpy(streams.offset)[None, :, :, None])
        row = torch.arange(width).repeat(self.count)
        number = torch.arange(self.count).repeat_interleave(width)
        seen = (row[:, None] == row) & (number[:, None] >= number)
        by_rows = torch.full((width, width * self.count), UNSEEN)
        by_streams = torch.where(seen, 0.0, UNSEEN)
        self.register_buffer("own", torch.cat([by_rows, by_streams])[None, None])

    def join(self, rows: Tensor) -> Tensor:
        """From rows [1, hidden, 1, W] to rows and streams, [1, hidden, 1, W·(1 + s)]."""
        hidden = rows.shape[1]
        step = self.up(self.down(rows)).reshape(1, self.count, hidden, self.width)
        started = step + self.offset + rows.transpose(1, 2)
        streams = started.transpose(1, 2).reshape(1, hidden, 1, self.count * self.width)
        return torch.cat([rows, streams], dim=3)

    def positions(self, positions: Tensor) -> Tensor:
        """Stream k of a row is k positions after it: from [W] to [W·(1 + s)]."""
        return torch.cat([positions + number for number in range(self.count + 1)])

    def mask(self, bias: Tensor) -> Tensor:
        """From [1, 1, W, n] to [1, 1, W·(1 + s), n + W·s].

        A stream sees what its row sees, and its row's streams up to itself.
        """
        return torch.cat([torch.cat([bias] * (self.count + 1), dim=2), self.own], dim=3)


def stream_logits(decoder: Decoder, streams: Streams, ids: NDArray[np.int64]) -> Rows:
    """The logits of the streams of every row of a text, [S, s, vocabulary]; decoder in channels."""
    spec, size = decoder.spec, len(ids)
    rows, ahead = decoder.embed(torch.from_numpy(ids)[None]), StreamRows(streams, size)
    positions = torch.arange(size)
    mask = torch.full((1, 1, size, size), UNSEEN).triu(1)
    for index, layer in enumerate(decoder.layers):
        if index == spec.layers - streams.layers:
            rows, positions, mask = ahead.join(rows), ahead.positions(positions), ahead.mask(mask)
        attend = _under(torch.cat([mask] * spec.group, dim=2))
        rows = layer(rows, decoder.rotary(positions), attend)
    logits = decoder.head(rows[..., size:]).reshape(-1, streams.count, size)
    return logits[: spec.vocabulary].permute(2, 1, 0).numpy()


def _under(mask: Tensor) -> Attend:
    return lambda _, q, k, v: F.scaled_dot_product_attention(q, k, v, mask)
