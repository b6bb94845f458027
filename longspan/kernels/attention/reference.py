"""Sliding-window attention, plain torch: softmax(q k^T / sqrt(P) + band mask) v.

Keys are the past (positions s-W+1 .. s-1) followed by the new ones (s .. s+L-1), so column j
holds position s-W+1+j and query i (position s+i) sees columns i .. i+W-1, of them those whose
position is not negative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from longspan.kernels.attention.int8_rows import Rows, as_float, joined, kept_like
from longspan.kernels.attention.scratch import PLAIN_BLOCK_QUERIES

# Which keys some queries see, bool [R, M], of the queries' numbers, int64 [R, 1].
Seen = Callable[[torch.Tensor], torch.Tensor]


def masked_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: Seen
) -> torch.Tensor:
    """softmax(q k^T / sqrt(P)) v over those of the keys [B, M, G, P] that each query sees.

    A block of queries at a time: the scores of all of them take more than all else.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    keys, values = keys.to(wide), values.to(wide)
    numbers = torch.arange(q.shape[1], device=q.device)[:, None]
    blocks = zip(
        torch.split(q, PLAIN_BLOCK_QUERIES, dim=1),
        torch.split(numbers, PLAIN_BLOCK_QUERIES),
        strict=True,
    )
    return torch.cat([_attended(block, keys, values, seen(rows)) for block, rows in blocks], dim=1)


def _attended(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    batch, length, heads, width = q.shape
    groups = keys.shape[2]
    grouped = q.reshape(batch, length, groups, heads // groups, width)
    scores = torch.einsum("blgqp,bmgp->bgqlm", grouped.to(keys.dtype) / width**0.5, keys)
    weights = scores.masked_fill_(~seen, float("-inf")).softmax(-1)
    y = torch.einsum("bgqlm,bmgp->blgqp", weights, values)
    return y.reshape(batch, length, heads, width).to(q.dtype)


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: Rows,
    past_v: Rows,
    position: torch.Tensor,
    *,
    window: int,
) -> tuple[torch.Tensor, Rows, Rows]:
    """See `longspan.kernels.attention.window_attention`."""
    length = q.shape[1]
    new_k, new_v = kept_like(past_k, k), kept_like(past_v, v)
    keys = torch.cat([as_float(past_k, k.dtype), as_float(new_k, k.dtype)], dim=1)
    values = torch.cat([as_float(past_v, v.dtype), as_float(new_v, v.dtype)], dim=1)

    column = torch.arange(length + window - 1, device=q.device)[None, :]

    def seen(row: torch.Tensor) -> torch.Tensor:
        return (column >= row) & (column < row + window) & (column >= window - 1 - position)

    y = masked_attention(q, keys, values, seen)
    return y, joined(_moved, past_k, new_k), joined(_moved, past_v, new_v)


def _moved(past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The newest of the old and the new entries, as many as there were."""
    length, entries = new.shape[1], past.shape[1]
    newest = new[:, max(0, length - entries) :].to(past.dtype)
    return torch.cat([past[:, length:], newest], dim=1)
