"""Sliding-window attention, plain torch: softmax(q k^T / sqrt(P) + band mask) v.

Keys are the past (positions s-W+1 .. s-1) followed by the new ones (s .. s+L-1), so column j
holds position s-W+1+j and query i (position s+i) sees columns i .. i+W-1, of them those whose
position is not negative.
"""

from __future__ import annotations

import torch


def masked_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """softmax(q k^T / sqrt(P)) v over those keys [B, M, G, P] that `seen`, bool [L, M], marks."""
    batch, length, heads, width = q.shape
    groups = keys.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = q.view(batch, length, groups, heads // groups, width)
    scores = torch.einsum("blgqp,bmgp->bgqlm", grouped.to(wide), keys.to(wide)) / width**0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    y = torch.einsum("bgqlm,bmgp->blgqp", weights, values.to(wide))
    return y.reshape(batch, length, heads, width).to(q.dtype)


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    position: torch.Tensor,
    *,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.attention.window_attention`."""
    length = q.shape[1]
    keys = torch.cat([past_k.to(k.dtype), k], dim=1)
    values = torch.cat([past_v.to(v.dtype), v], dim=1)

    row = torch.arange(length, device=q.device)[:, None]
    column = torch.arange(length + window - 1, device=q.device)[None, :]
    seen = (column >= row) & (column < row + window) & (column >= window - 1 - position)

    return (
        masked_attention(q, keys, values, seen),
        # Copies: views would keep the keys and values of the whole call alive.
        keys[:, length:].to(past_k.dtype, copy=True),
        values[:, length:].to(past_v.dtype, copy=True),
    )
