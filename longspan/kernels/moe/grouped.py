"""A mixture of experts, plain torch, for CPUs: tokens sorted by expert, one product an expert.

Only the chosen experts compute, and their weights are read once for all of their tokens.
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
    weights, experts = choose_experts(logits, top_k=top_k, renormalise=renormalise)
    pairs = experts.flatten().argsort(stable=True)
    counts = experts.flatten().bincount(minlength=gate_up.shape[0]).tolist()
    groups = torch.split(pairs, counts)
    y = torch.zeros(x.shape, dtype=logits.dtype, device=x.device)
    for i, own in enumerate(groups):
        if not len(own):
            continue
        tokens = own // top_k
        gate, up = linear(x[tokens], gate_up[i].to(x.dtype)).chunk(2, dim=-1)
        result = linear(silu(gate) * up, down[i].to(x.dtype))
        y[tokens] += weights.flatten()[own, None] * result
    return y.to(x.dtype)
