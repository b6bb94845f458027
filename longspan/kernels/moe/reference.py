"""A mixture of experts, plain torch: every expert for every token, weighted, most by zero.

Definition          here
p_i, 0 outside S    weights[:, i]    [T, E]
SwiGLU_i            W_down,i (silu(W_gate,i x) * (W_up,i x))
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear, silu

from longspan.kernels.moe.routing import choose_experts


def moe(
    x: torch.Tensor,
    logits: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    *,
    top_k: int,
    renormalise: bool,
) -> torch.Tensor:
    """See `longspan.kernels.moe.moe`, over x [T, D] and logits [T, E]."""
    chosen, experts = choose_experts(logits, top_k=top_k, renormalise=renormalise)
    weights = torch.zeros_like(logits).scatter(1, experts, chosen)
    y = torch.zeros(x.shape, dtype=logits.dtype, device=x.device)
    for i in range(gate_up.shape[0]):
        gate, up = linear(x, gate_up[i].to(x.dtype)).chunk(2, dim=-1)
        y = y + weights[:, i, None] * linear(silu(gate) * up, down[i].to(x.dtype))
    return y.to(x.dtype)
