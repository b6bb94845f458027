"""The selective scan, plain torch, one token after another (arXiv 2312.00752, equation 2a).

Paper          here
Delta_t        step[:, t]            softplus(dt_t + dt_bias), [B, E]
A-bar_t        exp(step A)           zero-order hold
B-bar_t x_t    step B_t x_t          Euler, as every published checkpoint was trained
h_t            state                 [B, E, N]
"""

from __future__ import annotations

import torch
from torch.nn.functional import silu, softplus


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.selective_scan.selective_scan`."""
    wide = A.dtype
    step = softplus(dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide))
    inputs, B, C = x.to(wide), B.to(wide), C.to(wide)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(step[:, t, :, None] * A)
        state = decay * state + (step[:, t] * inputs[:, t])[:, :, None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.to(wide) * inputs
    if z is not None:
        y = y * silu(z.to(wide))
    return y.to(x.dtype), state
