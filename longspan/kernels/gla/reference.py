"""Gated linear attention, plain torch, one token after another (arXiv 2312.06635, equation 3).

Paper          here
alpha_t        exp(log_decay[:, t])    a number a key channel; with log decays [H] one a head
S_t            state                   [B, H, K, V]
k_t^T v_t      keys values^T           an outer product [K, V]
o_t            y[:, t]                 scale q_t S_t, [B, H, V]
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
    decay = log_decay.exp()
    # In place, and no list of rows: a new state for each token would take longer than its products.
    state = state.clone()
    y = torch.empty(v.shape, dtype=wide, device=q.device)
    for t in range(q.shape[1]):
        state *= decay[:, None, None] if decay.dim() == 1 else decay[:, t, :, :, None]
        state.addcmul_(keys[:, t, :, :, None], values[:, t, :, None, :])
        y[:, t] = scale * (queries[:, t, :, None, :] @ state)[:, :, 0]
    return y, state
