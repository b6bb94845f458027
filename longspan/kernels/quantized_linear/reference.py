"""Linear layer of 8 or 4 bits, plain torch: the weight in the dtype of x, then a linear layer."""

from __future__ import annotations

import torch

from longspan.kernels.deferred_norm import DeferredNorm
from longspan.kernels.dequantize.reference import dequantize


def quantized_linear(
    x: torch.Tensor | DeferredNorm,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    bits: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `longspan.kernels.quantized_linear.quantized_linear`."""
    row = x.row if isinstance(x, DeferredNorm) else x
    W = dequantize(
        weight, scales, zeros, bits=bits, width=row.shape[-1], dtype=row.dtype, rows=None
    )
    if isinstance(x, DeferredNorm):
        y = x.divided(torch.nn.functional.linear(row, W), bias)
    else:
        y = torch.nn.functional.linear(row, W, None if bias is None else bias.to(row.dtype))
    return y if out is None else out.copy_(y)
