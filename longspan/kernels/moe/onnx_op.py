"""A mixture of experts as ``longspan::Experts``, which `longspan.export.scans` makes a Scan.

The Scan walks the experts, not the tokens: each turn gathers the expert's tokens and adds what it
gives. ``com.microsoft::MoE`` is not used: on the CPU it knows interleaved gates only, it wants the
router's logits in the dtype of x, and was not faster (docs/kernels.md). Where matrices have 8 or 4
bits it is ``longspan::PackedExperts``, which on CPUs is no loop: ONNX Runtime multiplies quickly
with such a matrix only where it is a constant of a node of its own.
"""

from __future__ import annotations

import torch

from longspan.kernels.moe.matrices import Matrices, Packed, sizes_of
from longspan.kernels.moe.routing import choose_experts
from longspan.kernels.quantized_linear.onnx_op import product_attributes


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
    start = torch.zeros_like(x, dtype=torch.float32)
    tensors, attributes = [weights.t()], {"experts": logits.shape[1], "widened": 0}
    for name, matrices in (("gate_up", gate_up), ("down", down)):
        if isinstance(matrices, Packed):
            width = x.shape[1] if name == "gate_up" else sizes_of(gate_up)[1] // 2
            product = product_attributes(matrices.weight, width=width, bits=matrices.bits)
            attributes |= {f"{name}_{key}": value for key, value in product.items()}
            attributes["widened"] |= int(matrices.scales.dtype != x.dtype)
        tensors += (parts := _tensors(matrices, x))
        attributes[f"{name}_parts"] = len(parts)
    packed = isinstance(gate_up, Packed) or isinstance(down, Packed)
    total: torch.Tensor = torch.onnx.ops.symbolic(
        "longspan::PackedExperts" if packed else "longspan::Experts",
        (start, *tensors, x),
        {"carried": 1, "scanned": len(tensors), **(attributes if packed else {})},
        dtype=torch.float32,
        shape=x.shape,
        version=1,
    )
    return total.to(x.dtype)


def _tensors(matrices: Matrices, x: torch.Tensor) -> list[torch.Tensor]:
    """What the node reads of them: scales in their own dtype, which it widens to float32."""
    if isinstance(matrices, Packed):
        parts = (matrices.weight, matrices.scales, matrices.zeros)
        return [each for each in parts if each is not None]
    return [matrices.to(x.dtype)]
