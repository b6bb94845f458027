"""A linear layer over `longspan.kernels.linear`: weight (out, in), exported without a copy."""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.linear import linear


class Linear(nn.Module):
    """``x @ weight.T + bias`` in the dtype of x, whatever dtype the weight is stored in."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool = False, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(d_out, dtype=dtype)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float [..., d_in] to [..., d_out]."""
        return linear(x, self.weight, self.bias)

    def part(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        """The outputs `rows` alone, by the same rows of the weight where they lie."""
        return linear(x, self.weight[rows], None if self.bias is None else self.bias[rows])
