"""Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467), with or without a gate."""

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
    gate: torch.Tensor | None = None,
    gate_first: bool = False,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> torch.Tensor:
    """Compute ``x * rsqrt(mean(x^2) + eps) * weight`` over the last dimension.

    With a gate the result is multiplied by silu(gate); with `gate_first` x is, before its mean
    square is taken (Mamba-2, arXiv 2405.21060, section 7.1). All of it is computed in float32
    (float64 for float64 input) and rounded once.

    Args:
        x: float [..., D], or [..., G, D] for G groups with a mean square each.
        weight: float [D], or [G, D] with a row for each group; None for no scale.
        eps: added to the mean square, > 0.
        gate: float, shape of `x`, the gate before SiLU; None for no gate.
        gate_first: whether `x` is gated before it is normalised.
        dtype: dtype of the result; None keeps that of `x`.
        overwrite: whether the result may take the place of `x` in memory: do not read `x` after.

    Returns:
        `dtype`, shape of `x`.

    Raises:
        ValueError: `weight` or `gate` has another shape.
    """
    if weight is not None:
        require_shape("rms_norm", "weight", weight, tuple(x.shape[-weight.dim() :]))
    if gate is not None:
        require_shape("rms_norm", "gate", gate, tuple(x.shape))
    result: torch.Tensor = implementation("rms_norm", x)(
        x,
        weight,
        eps=eps,
        gate=gate,
        gate_first=gate_first,
        dtype=dtype or x.dtype,
        overwrite=overwrite,
    )
    return result
