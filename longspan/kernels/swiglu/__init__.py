"""The product of an activation and a SiLU gate (SwiGLU, arXiv 2002.05202, equation 6)."""

from __future__ import annotations

import torch

from longspan.kernels.checks import require_shape
from longspan.kernels.choice import implementation

__all__ = ["swiglu"]


def swiglu(gate: torch.Tensor, x: torch.Tensor, *, overwrite: bool = False) -> torch.Tensor:
    """Compute ``silu(gate) * x``, silu(g) = g sigmoid(g).

    It is computed in float32 (float64 for float64) and rounded once; in an exported graph in the
    graph's own dtype.

    Args:
        gate: float [..., D].
        x: float [..., D].
        overwrite: whether the result may take the place of `gate` in memory, its rows as far apart:
            do not read `gate` after.

    Returns:
        dtype of `x` [..., D].

    Raises:
        ValueError: the shapes differ.
    """
    require_shape("swiglu", "gate", gate, tuple(x.shape))
    result: torch.Tensor = implementation("swiglu", x)(gate, x, overwrite=overwrite)
    return result
