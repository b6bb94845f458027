"""A linear layer whose weight is stored in floating point, or in 8 or 4 bits."""

from __future__ import annotations

import torch

from longspan.kernels.linear import linear
from longspan.kernels.quantized_linear import quantized_linear


def linear_of_any(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    scales: torch.Tensor | None,
    zeros: torch.Tensor | None,
    bits: int | None,
) -> torch.Tensor:
    """`linear` where `bits` is None, `quantized_linear` elsewhere."""
    if bits is None:
        return linear(x, weight, bias)
    assert scales is not None, "packed weights have scales"
    return quantized_linear(x, weight, scales, zeros, bias, bits=bits)
