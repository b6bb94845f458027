"""A mixture of experts, plain torch, for CPUs: tokens sorted by expert, one product an expert.

Only the chosen experts compute, and their weights are read once for all of their tokens. So they
need not all be at hand: `moe_brought` asks for those that were chosen, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch.nn.functional import silu

from longspan.kernels.moe.matrices import Matrices, multiply
from longspan.kernels.moe.routing import choose_experts

# Takes how many tokens each chosen expert has, by its number, and gives number, gate_up [2 F, D]
# and down [D, F] of each, in the same order; each is valid until the next one.
Bring = Callable[[Mapping[int, int]], Iterable[tuple[int, Matrices, Matrices]]]


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

    def bring(tokens: Mapping[int, int]) -> Iterable[tuple[int, Matrices, Matrices]]:
        return ((expert, gate_up[expert], down[expert]) for expert in tokens)

    return moe_brought(x, logits, bring, top_k=top_k, renormalise=renormalise)


def moe_brought(
    x: torch.Tensor, logits: torch.Tensor, bring: Bring, *, top_k: int, renormalise: bool
) -> torch.Tensor:
    """The same with experts that `bring` gives; the host waits for the router."""
    weights, experts = choose_experts(logits, top_k=top_k, renormalise=renormalise)
    chosen = experts.flatten()
    counts = chosen.bincount(minlength=logits.shape[1]).tolist()
    groups = torch.split(chosen.argsort(stable=True), counts)
    y = torch.zeros(x.shape, dtype=logits.dtype, device=x.device)
    tokens_of = {expert: count for expert, count in enumerate(counts) if count}
    for expert, gate_up, down in bring(tokens_of):
        own = groups[expert]
        tokens = own // top_k
        gate, up = multiply(x[tokens], gate_up).chunk(2, dim=-1)
        result = multiply(silu(gate) * up, down)
        y[tokens] += weights.flatten()[own, None] * result
    return y.to(x.dtype)
