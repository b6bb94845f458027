"""Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import torch

from longspan.kernels.checks import require_shape
from longspan.kernels.choice import implementation

__all__ = ["rms_norm"]


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    eps: float,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute ``x * rsqrt(mean(x^2) + eps) * weight`` over the last dimension.

    Statistics are taken in float32 (float64 for float64 input).

    Args:
        x: float [..., D].
        weight: float [D], or None for no scale.
        eps: added to the mean square, > 0.
        dtype: dtype of the result; None keeps that of `x`.

    Returns:
        `dtype` [..., D].

    Raises:
        ValueError: `weight` is not as wide as `x`.
    """
    if weight is not None:
        require_shape("rms_norm", "weight", weight, (x.shape[-1],))
    result: torch.Tensor = implementation("rms_norm", x)(x, weight, eps=eps, dtype=dtype or x.dtype)
    return result
