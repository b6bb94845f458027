"""Attention over a sliding window that goes on from the keys and values before it."""

from __future__ import annotations

import torch

from longspan.kernels.attention.int8_rows import SomeRows, require_rows
from longspan.kernels.checks import require_dtype, require_shape
from longspan.kernels.choice import implementation

__all__ = ["window_attention"]


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: SomeRows,
    past_v: SomeRows,
    position: torch.Tensor,
    *,
    window: int,
) -> tuple[torch.Tensor, SomeRows, SomeRows]:
    """Attend from each token to itself and the ``window - 1`` tokens before it.

    Scores are scaled by 1/sqrt(P); query head h reads key head ``h // (H // G)``. With a past in
    int8 (`longspan.kernels.attention.int8_rows`) new keys and values are quantized before their
    first use, so that any cut of the tokens into calls gives the same output and the same past.

    Args:
        q: float [B, L, H, P], after RoPE.
        k: dtype of `q` [B, L, G, P], after RoPE; G divides H.
        v: dtype of `q` [B, L, G, P].
        past_k: float or `Int8Rows` [B, window-1, G, P], keys of the tokens before, oldest first.
        past_v: as `past_k`.
        position: int64 [1], tokens read before this call: only the last
            ``min(position, window - 1)`` entries of the past are looked at.
        window: tokens that a token sees, itself among them; >= 1.

    Returns:
        The output [B, L, H, P] and the new past_k and past_v [B, window-1, G, P].

    Raises:
        ValueError: a shape or dtype does not match.
    """
    op = "window_attention"
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    if window < 1:
        raise ValueError(f"{op}: window is {window}; it must be at least 1")
    if heads % groups:
        raise ValueError(f"{op}: {heads} query heads are no multiple of {groups} key heads")
    for name, tensor, shape in (
        ("k", k, (batch, length, groups, width)),
        ("v", v, (batch, length, groups, width)),
        ("position", position, (1,)),
    ):
        require_shape(op, name, tensor, shape)
    require_rows(op, past_k, past_v, (batch, window - 1, groups, width))
    require_dtype(op, "position", position, torch.int64)
    result: tuple[torch.Tensor, SomeRows, SomeRows] = implementation(op, q)(
        q, k, v, past_k, past_v, position, window=window
    )
    return result
