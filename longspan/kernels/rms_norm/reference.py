"""RMSNorm, plain torch: y = x / sqrt(mean(x^2) + eps) * w (arXiv 1910.07467, equation 4)."""

from __future__ import annotations

import torch


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, *, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    """See `longspan.kernels.rms_norm.rms_norm`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x = x.to(wide)
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(wide)
    return y.to(dtype)
