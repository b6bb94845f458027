"""The norms before each mixer and before the head: RMSNorm and LayerNorm, by name.

Each adds what the mixer before it gave to the residual, and normalises the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from longspan.kernels.add_norm import add_norm
from longspan.kernels.deferred_norm import NextNorm
from longspan.models.config import ModelConfig, Norm


class RmsNorm(nn.Module):
    """RMSNorm with a weight; reads the float32 residual, gives the dtype of the computation."""

    def __init__(self, width: int, *, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(
        self, x: torch.Tensor, y: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give x + y, and its norm in `dtype`, as `add_norm` does; all [..., D]."""
        return add_norm(x, y, self.weight, kind="rms", eps=self.eps, dtype=dtype)

    def deferred(self, x: torch.Tensor, matrix: torch.Tensor | None, bits: int | None) -> NextNorm:
        """The norm of a sum with x, whose division is left to who reads it; see `NextNorm`."""
        return NextNorm(residual=x, weight=self.weight, eps=self.eps, matrix=matrix, bits=bits)


class LayerNorm(nn.Module):
    """LayerNorm with weight and bias (arXiv 1607.06450), in the float32 of the residual."""

    def __init__(self, width: int, *, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(
        self, x: torch.Tensor, y: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give x + y, and its norm in `dtype`, as `add_norm` does; all [..., D]."""
        return add_norm(x, y, self.weight, self.bias, kind="layer", eps=self.eps, dtype=dtype)


# Each module takes (width, eps=..., dtype=...), and (x, y, dtype) -> (x + y, its norm).
NORMS: Mapping[Norm, Callable[..., nn.Module]] = {"rms": RmsNorm, "layer": LayerNorm}


def make_norm(config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """A norm of the model's kind and width, with weights of `dtype` that are not set."""
    return NORMS[config.norm](config.d_model, eps=config.norm_eps, dtype=dtype)
