"""The norms before each mixer and before the head: RMSNorm and LayerNorm, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from longspan.kernels.rms_norm import rms_norm
from longspan.models.config import ModelConfig, Norm


class RmsNorm(nn.Module):
    """RMSNorm with a weight; reads the float32 residual, gives the dtype of the computation."""

    def __init__(self, width: int, *, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Normalise x [..., D] into `dtype`."""
        return rms_norm(x, self.weight, eps=self.eps, dtype=dtype)


class LayerNorm(nn.Module):
    """LayerNorm with weight and bias (arXiv 1607.06450), in the float32 of the residual."""

    def __init__(self, width: int, *, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Normalise x [..., D] into `dtype`."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return nn.functional.layer_norm(x, weight.shape, weight, bias, self.eps).to(dtype)


# Each module takes (width, eps=..., dtype=...), and (x, dtype) -> y.
NORMS: Mapping[Norm, Callable[..., nn.Module]] = {"rms": RmsNorm, "layer": LayerNorm}


def make_norm(config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """A norm of the model's kind and width, with weights of `dtype` that are not set."""
    return NORMS[config.norm](config.d_model, eps=config.norm_eps, dtype=dtype)
