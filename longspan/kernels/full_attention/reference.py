"""Attention over every token before, plain torch: softmax(q k^T / sqrt(P) + causal mask) v.

Keys are the first `position` entries of the cache followed by the new ones, so column j holds
position j and query i (position s + i) sees columns 0 .. s + i.
"""

from __future__ import annotations

import torch

from longspan.kernels.attention.reference import masked_attention


def full_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.full_attention.full_attention`."""
    length, used = q.shape[1], int(position)
    keys = torch.cat([past_k[:, :used].to(k.dtype), k], dim=1)
    values = torch.cat([past_v[:, :used].to(v.dtype), v], dim=1)
    row = torch.arange(length, device=q.device)[:, None]
    column = torch.arange(used + length, device=q.device)[None, :]
    y = masked_attention(q, keys, values, column <= used + row)
    return y, _appended(past_k, k, used), _appended(past_v, v, used)


def _appended(past: torch.Tensor, new: torch.Tensor, used: int) -> torch.Tensor:
    """A copy of the cache with the new entries after those in use."""
    cache = past.clone(memory_format=torch.contiguous_format)
    cache[:, used : used + new.shape[1]] = new
    return cache
