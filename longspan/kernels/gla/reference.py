"""Gated linear attention, plain torch, one token after another (arXiv 2312.06635, equation 3).

Paper          here
alpha_t        exp(log_decay[:, t])    a number a key channel; with log decays [H] one a head
S_t            state                   [B, H, K, V]
k_t^T v_t      keys values^T           an outer product [K, V]
o_t            outputs                 scale q_t S_t, [B, H, V]
"""

from __future__ import annotations

import torch


def gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    scale: float,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.gla.gla`."""
    wide = log_decay.dtype
    queries, keys, values = q.to(wide), k.to(wide), v.to(wide)
    fixed = log_decay.exp()[:, None, None] if log_decay.dim() == 1 else None
    outputs = []
    for t in range(q.shape[1]):
        decay = log_decay[:, t].exp()[..., None] if fixed is None else fixed
        state = decay * state + keys[:, t, :, :, None] * values[:, t, :, None, :]
        outputs.append(scale * (queries[:, t, :, :, None] * state).sum(-2))
    return torch.stack(outputs, dim=1).to(q.dtype), state
