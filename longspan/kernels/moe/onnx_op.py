"""A mixture of experts as ``longspan::Experts``, which `longspan.export.scans` makes a Scan.

The Scan walks the experts, not the tokens: each turn gathers the expert's tokens and adds what it
gives. ``com.microsoft::MoE`` is not used: on the CPU it knows interleaved gates only, it wants the
router's logits in the dtype of x, and was not faster (docs/kernels.md).
"""

from __future__ import annotations

import torch

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
    start = torch.zeros_like(x, dtype=torch.float32)
    total: torch.Tensor = torch.onnx.ops.symbolic(
        "longspan::Experts",
        (start, weights.t(), gate_up.to(x.dtype), down.to(x.dtype), x),
        {"carried": 1, "scanned": 3},
        dtype=torch.float32,
        shape=x.shape,
        version=1,
    )
    return total.to(x.dtype)
