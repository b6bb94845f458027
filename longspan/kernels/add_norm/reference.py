"""The residual's sum and its norm, plain torch; LayerNorm is torch's own.

RMSNorm    s / sqrt(mean(s^2) + eps) * w                  (arXiv 1910.07467, equation 4)
LayerNorm  (s - mean(s)) / sqrt(var(s) + eps) * w + b     (arXiv 1607.06450, equation 4)
"""

from __future__ import annotations

import torch
from torch.nn.functional import layer_norm


def add_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    kind: str,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.add_norm.add_norm`."""
    total = x if y is None else x + y.to(x.dtype)
    s = total.to(torch.promote_types(x.dtype, torch.float32))
    weight = weight.to(s.dtype)
    bias = None if bias is None else bias.to(s.dtype)
    if kind == "layer":
        return total, layer_norm(s, weight.shape, weight, bias, eps).to(dtype)
    normed = s * torch.rsqrt(s.square().mean(-1, keepdim=True) + eps) * weight
    return total, (normed if bias is None else normed + bias).to(dtype)
