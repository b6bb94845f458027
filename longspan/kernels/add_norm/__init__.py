"""The sum of a residual and what is added to it, and the sum's norm."""

from __future__ import annotations

from typing import Literal

import torch

from longspan.kernels.checks import require_shape
from longspan.kernels.choice import implementation

__all__ = ["add_norm"]


def add_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    kind: Literal["rms", "layer"],
    eps: float,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``x + y``, and of it RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450).

        rms:    s / sqrt(mean(s^2) + eps) * weight            s = x + y
        layer:  (s - mean(s)) / sqrt(var(s) + eps) * weight + bias

    The sum is rounded to the dtype of `x`; its norm is computed in float32 (float64 for float64).

    Args:
        x: float [..., D], the residual. The sum may take its place in memory: do not read `x` after
            the call.
        y: float [..., D], what is added to it; None for nothing, and the sum is `x`.
        weight: float [D].
        bias: float [D], or None for none.
        kind: ``"rms"`` or ``"layer"``.
        eps: added under the root, > 0.
        dtype: dtype of the norm; None for that of `x`.

    Returns:
        The sum, dtype of `x` [..., D], and its norm, `dtype` [..., D].

    Raises:
        ValueError: a shape does not match.
    """
    op = "add_norm"
    if y is not None:
        require_shape(op, "y", y, tuple(x.shape))
    require_shape(op, "weight", weight, (x.shape[-1],))
    if bias is not None:
        require_shape(op, "bias", bias, (x.shape[-1],))
    result: tuple[torch.Tensor, torch.Tensor] = implementation(op, x)(
        x, y, weight, bias, kind=kind, eps=eps, dtype=dtype or x.dtype
    )
    return result
