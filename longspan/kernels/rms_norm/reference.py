"""RMSNorm, plain torch: y = x / sqrt(mean(x^2) + eps) * w (arXiv 1910.07467, equation 4)."""

from __future__ import annotations

import torch
from torch.nn.functional import silu


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    gate: torch.Tensor | None,
    gate_first: bool,
    dtype: torch.dtype,
    overwrite: bool = False,
) -> torch.Tensor:
    """See `longspan.kernels.rms_norm.rms_norm`; it overwrites nothing."""
    del overwrite
    wide = torch.promote_types(x.dtype, torch.float32)
    if gate is not None and gate_first:
        # In this order x is widened without a copy of its own.
        x = silu(gate.to(wide)) * x
    x = x.to(wide)
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(wide)
    if gate is not None and not gate_first:
        y = y * silu(gate.to(wide))
    return y.to(dtype)
