"""Linear layer of 8 or 4 bits, plain torch: the weight in the dtype of x, then a linear layer."""

from __future__ import annotations

import torch

from longspan.kernels.dequantize.reference import dequantize


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
    W = dequantize(weight, scales, zeros, bits=bits, width=x.shape[-1], dtype=x.dtype, rows=None)
    y = torch.nn.functional.linear(x, W, None if bias is None else bias.to(x.dtype))
    return y if out is None else out.copy_(y)
