"""Softplus where it is to take no memory of its own."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus


def softplus_(x: torch.Tensor) -> torch.Tensor:
    """Compute log(1 + exp(x)), over x unless a gradient needs x or a graph is exported.

    Args:
        x: float [...]; do not read it after.
    """
    if torch.is_grad_enabled() or torch.onnx.is_in_onnx_export():
        return softplus(x)
    result: torch.Tensor = torch.ops.aten.softplus.out(x, out=x)
    return result
