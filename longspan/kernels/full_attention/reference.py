"""Attention over every token before, plain torch: softmax(q k^T / sqrt(P) + causal mask) v.

Keys are the first `position` entries of the cache followed by the new ones, so column j holds
position j and query i (position s + i) sees columns 0 .. s + i.
"""

from __future__ import annotations

import torch

from longspan.kernels.attention.int8_rows import (
    Rows,
    as_float,
    entries,
    joined,
    kept_like,
)
from longspan.kernels.attention.reference import masked_attention


def full_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: Rows,
    past_v: Rows,
    position: torch.Tensor,
) -> tuple[torch.Tensor, Rows, Rows]:
    """See `longspan.kernels.full_attention.full_attention`."""
    length, used = q.shape[1], int(position)
    new_k, new_v = kept_like(past_k, k), kept_like(past_v, v)

    def in_use(past: Rows, new: Rows) -> torch.Tensor:
        old = entries(past, slice(used))
        return torch.cat([as_float(old, q.dtype), as_float(new, q.dtype)], dim=1)

    def appended(past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """A copy of the cache with the new entries after those in use."""
        cache = past.clone(memory_format=torch.contiguous_format)
        cache[:, used : used + length] = new
        return cache

    column = torch.arange(used + length, device=q.device)[None, :]

    def seen(row: torch.Tensor) -> torch.Tensor:
        return column <= used + row

    y = masked_attention(q, in_use(past_k, new_k), in_use(past_v, new_v), seen)
    return y, joined(appended, past_k, new_k), joined(appended, past_v, new_v)
