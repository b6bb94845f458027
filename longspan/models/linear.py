"""A linear layer over `longspan.kernels`: weight (out, in), exported without a copy.

The weight is either a matrix of floating point or, once `quantize_` was called, one of 8 or 4 bits
with the scales and zero points of its blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from longspan.kernels.linear import linear
from longspan.kernels.quantized_linear import quantized_linear
from longspan.models.config import Quantization


class Linear(nn.Module):
    """``x @ weight.T + bias`` in the dtype of x, whatever dtype the weight is stored in.

    Args:
        d_in: width of x, K.
        d_out: width of the result, N.
        bias: whether there is one.
        dtype: of weight and bias; of a quantised weight's scales.
        exact: whether the weight stays as it is where others are quantised.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        bias: bool = False,
        dtype: torch.dtype,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.exact = exact
        self.bits: int | None = None
        self.weight = nn.Parameter(torch.empty(d_out, d_in, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(d_out, dtype=dtype)) if bias else None

    def quantize_(self, stored: Quantization) -> None:
        """Take a weight of `stored` from now on, uint8, with its scales and zero points, not set.

        A layer that is exact, or narrower than a block, stays as it is.
        """
        if self.exact or not stored.takes(self.weight.shape[1]):
            return
        self.bits = stored.bits
        self.weight, self.scales, self.zeros = quantized_parameters(self.weight, stored)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float [..., d_in] to [..., d_out]."""
        if self.bits is None:
            return linear(x, self.weight, self.bias)
        return quantized_linear(x, self.weight, self.scales, self.zeros, self.bias, bits=self.bits)

    @property
    def packing(self) -> dict[str, Any]:
        """Scales, zero points and bits of the weight, as the fused ops take them."""
        if self.bits is None:
            return {}
        return {"scales": self.scales, "zeros": self.zeros, "bits": self.bits}

    def part(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        """The outputs `rows` alone, by the same rows of the weight where they lie."""
        bias = None if self.bias is None else self.bias[rows]
        if self.bits is None:
            return linear(x, self.weight[rows], bias)
        zeros = None if self.zeros is None else self.zeros[rows]
        return quantized_linear(
            x, self.weight[rows], self.scales[rows], zeros, bias, bits=self.bits
        )


def quantized_parameters(
    weight: torch.Tensor, stored: Quantization
) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter | None]:
    """Parameters, not set, for matrices like `weight` [..., N, K]: numbers, scales, zero points."""

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
        data = torch.empty(shape, dtype=dtype, device=weight.device)
        return nn.Parameter(data, requires_grad=False)

    *several, rows, width = weight.shape
    zeros = stored.zeros_shape(rows, width)
    return (
        empty((*several, *stored.weight_shape(rows, width)), torch.uint8),
        empty((*several, *stored.scales_shape(rows, width)), weight.dtype),
        None if zeros is None else empty((*several, *zeros), torch.uint8),
    )
