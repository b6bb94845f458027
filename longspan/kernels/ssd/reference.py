"""The state-space dual, plain torch, one token after another (arXiv 2405.21060, equation 1).

Paper          here
Delta_t        step[:, t]            clamp(softplus(dt_t + dt_bias), *dt_limit), [B, H]
A-bar_t        exp(step A)           one number a head: A is a scalar times the identity
B-bar_t x_t    B_t (step x_t)^T      Euler, an outer product [N, P]
h_t            state                 [B, H, N, P]
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_limit: tuple[float, float],
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.ssd.ssd`."""
    wide = A.dtype
    step = softplus(dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide))
    step = step.clamp(*dt_limit)
    repeats = x.shape[2] // B.shape[2]
    inputs, B, C = x.to(wide), B.to(wide), C.to(wide)
    outputs = []
    for t in range(x.shape[1]):
        keys = B[:, t].repeat_interleave(repeats, dim=1)
        queries = C[:, t].repeat_interleave(repeats, dim=1)
        decay = torch.exp(step[:, t] * A)[:, :, None, None]
        state = decay * state + keys[..., None] * (step[:, t, :, None] * inputs[:, t])[:, :, None]
        outputs.append((queries[..., None] * state).sum(-2))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + (D if D.dim() == 2 else D[:, None]).to(wide) * inputs
    return y.to(x.dtype), state
