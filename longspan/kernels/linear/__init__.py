"""A linear layer whose weight stays where it is: one matrix product, no transposed copy."""

from __future__ import annotations

import torch

from longspan.kernels.checks import check_out, require_shape
from longspan.kernels.choice import implementation

__all__ = ["linear"]


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute ``x @ weight.T + bias`` in the dtype of `x`.

    Args:
        x: float [..., D].
        weight: float [O, D]; cast to the dtype of `x` if it is stored in another.
        bias: float [O], or None.
        out: float32 [..., O] contiguous, that takes the result, rounded to the dtype of `x`
            first; None for new memory.

    Returns:
        dtype of `x` [..., O], or `out`.

    Raises:
        ValueError: a shape does not match.
    """
    require_shape("linear", "weight", weight, (None, x.shape[-1]))
    if bias is not None:
        require_shape("linear", "bias", bias, (weight.shape[0],))
    if out is not None:
        check_out("linear", out, (*x.shape[:-1], weight.shape[0]))
    result: torch.Tensor = implementation("linear", x)(x, weight, bias, out=out)
    return result
