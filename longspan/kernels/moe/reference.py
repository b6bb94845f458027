"""A mixture of experts, plain torch: every expert for every token, weighted, most by zero.

Definition          here
p_i, 0 outside S    weights[:, i]    [T, E]
SwiGLU_i            W_down,i (silu(W_gate,i x) * (W_up,i x))
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear, silu

from longspan.kernels.moe.matrices import Matrices, dense
from longspan.kernels.moe.routing import choose_experts


def moe(
    x: torch.Tensor,
    logits: torch.Tensor,
    gate_up: Matrices,
    down: Matrices,
    *,
    top_k: int,
    renormalise: bool,
) -> torch.Tensor:
    """See `longspan.kernels.moe.moe`, over x [T, D] and logits [T, E]."""
    chosen, experts = choose_experts(logits, top_k=top_k, renormalise=renormalise)
    weights = torch.zeros_like(logits).scatter(1, experts, chosen)
    y = torch.zeros(x.shape, dtype=logits.dtype, device=x.device)
    for i in range(logits.shape[1]):
        gate, up = linear(x, dense(gate_up[i], x.shape[1], x.dtype)).chunk(2, dim=-1)
        hidden = silu(gate) * up
        result = linear(hidden, dense(down[i], hidden.shape[1], x.dtype))
        y = y + weights[:, i, None] * result
    return y.to(x.dtype)
