"""Linear layer of 8 or 4 bits as ``com.microsoft::MatMulNBits``.

On CPUs ONNX Runtime 1.31 multiplies float32 activations with 4 bits quickly as they are, and with
8 bits only where it may round them to 8 bits a block, too (``accuracy_level`` 4): a step over a
matrix of 5120 x 2560 takes 0.4 ms so and 75 ms otherwise (docs/measurements.md). On CUDA the
attribute does nothing.
"""

from __future__ import annotations

from typing import Any

import torch

# 0: activations as they are; 4: they may be rounded to 8 bits.
ACCURACY_LEVELS = {4: 0, 8: 4}


def product_attributes(weight: torch.Tensor, *, width: int, bits: int) -> dict[str, Any]:
    """Attributes of the product with packed matrices uint8 [..., N, blocks, bytes], K = `width`."""
    return {
        "K": width,
        "N": weight.shape[-3],
        "bits": bits,
        "block_size": weight.shape[-1] * 8 // bits,
        "accuracy_level": ACCURACY_LEVELS[bits],
    }


def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    bits: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `longspan.kernels.quantized_linear.quantized_linear`."""
    assert out is None, "a graph's values lie where its runtime puts them"
    inputs = (x, weight, scales.to(x.dtype))
    product: torch.Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MatMulNBits",
        inputs if zeros is None else (*inputs, zeros),
        product_attributes(weight, width=x.shape[-1], bits=bits),
        dtype=x.dtype,
        shape=(*x.shape[:-1], weight.shape[0]),
        version=1,
    )
    return product if bias is None else product + bias.to(x.dtype)
