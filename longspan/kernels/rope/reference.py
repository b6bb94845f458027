"""RoPE, plain torch (arXiv 2104.09864, equation 34).

f_i = base^(-2i/P), i < P/2; (a, b) = halves of a head, or its even and odd channels where
interleaved; out = (a cos - b sin, b cos + a sin).
Angles are reduced to one turn in float64: in float32 the angle of token 1,000,000 is off by 0.06.
"""

from __future__ import annotations

import math

import torch


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float,
    dims: int,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.rope.rope`."""
    half = dims // 2
    positions = position + torch.arange(q.shape[1], device=q.device)
    turns_per_token = base ** (-torch.arange(half, dtype=torch.float64, device=q.device) / half)
    turns = positions.to(torch.float64)[:, None] * (turns_per_token / (2 * math.pi))
    wide = torch.promote_types(q.dtype, torch.float32)
    angle = ((turns - turns.floor()) * (2 * math.pi)).to(wide)[None, :, None, :]
    cos, sin = angle.cos(), angle.sin()
    return _rotated(q, cos, sin, interleaved), _rotated(k, cos, sin, interleaved)


def _rotated(
    u: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """The heads of u [B, L, H, P], their first 2 I channels turned by angles [1, L, 1, I]."""
    dims = 2 * cos.shape[-1]
    if dims < u.shape[-1]:
        turned = _rotated(u[..., :dims], cos, sin, interleaved)
        return torch.cat([turned, u[..., dims:]], dim=-1)
    wide = u.to(cos.dtype)
    if interleaved:
        a, b = wide.reshape(*u.shape[:-1], dims // 2, 2).unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(u.dtype)
    a, b = wide.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(u.dtype)
