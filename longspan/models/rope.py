"""Rotary position embedding at absolute positions (arXiv 2104.09864).

f_i = base^(-2i/P), i < P/2; (a, b) = halves of u, or its even and odd channels where interleaved;
out = (a cos - b sin, b cos + a sin).
Angles are reduced to one turn in float64: in float32 the angle of token 1,000,000 is off by 0.06.
"""

from __future__ import annotations

import math

import torch


def rotate(
    u: torch.Tensor,
    positions: torch.Tensor,
    *,
    base: float,
    dims: int | None = None,
    interleaved: bool = False,
) -> torch.Tensor:
    """Rotate each head of u by its position.

    Args:
        u: float [B, L, H, P].
        positions: int64 [L], absolute.
        base: of the frequencies, such as 10000.
        dims: even; only the first `dims` channels of a head are rotated, as if P were so small
            (partial RoPE). None for all P.
        interleaved: whether channels 2i and 2i + 1 are rotated together, not i and i + P/2.

    Returns:
        dtype of `u` [B, L, H, P].
    """
    if dims is not None and dims < u.shape[-1]:
        turned, rest = u[..., :dims], u[..., dims:]
        turned = rotate(turned, positions, base=base, interleaved=interleaved)
        return torch.cat([turned, rest], dim=-1)
    half = u.shape[-1] // 2
    turns_per_token = base ** (-torch.arange(half, dtype=torch.float64, device=u.device) / half)
    turns = positions.to(torch.float64)[:, None] * (turns_per_token / (2 * math.pi))
    wide = torch.promote_types(u.dtype, torch.float32)
    angle = ((turns - turns.floor()) * (2 * math.pi)).to(wide)[None, :, None, :]
    cos, sin = angle.cos(), angle.sin()
    if interleaved:
        a, b = u.to(wide).reshape(*u.shape[:-1], half, 2).unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(u.dtype)
    a, b = u.to(wide).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(u.dtype)
