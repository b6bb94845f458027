"""The selective scan of Mamba (arXiv 2312.00752, algorithm 2), from a state to a state."""

from __future__ import annotations

import torch

from longspan.kernels.checks import require_dtype, require_shape
from longspan.kernels.choice import implementation

__all__ = ["selective_scan"]


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the recurrence over L tokens.

    With step_t = softplus(dt_t + dt_bias):

        h_t = exp(step_t A) h_{t-1} + step_t B_t x_t,   y_t = (C_t . h_t + D x_t) silu(z_t)

    Args:
        x: float [B, L, E], the convolved input.
        dt: float [B, L, E], before bias and softplus.
        A: float32 [E, N], negative.
        B: float [B, L, N].
        C: float [B, L, N].
        D: float [E], the skip, or None for none.
        z: float [B, L, E], the gate before SiLU, or None for no gate.
        dt_bias: float [E], or None for none.
        state: float32 [B, E, N], h before the first token; None for zeros.

    Returns:
        y, dtype of `x` [B, L, E], and h after the last token, float32 [B, E, N].

    Raises:
        ValueError: a shape or dtype does not match.
    """
    op = "selective_scan"
    batch, length, width = x.shape
    states = A.shape[1]
    require_dtype(op, "A", A, torch.float32)
    for name, tensor, shape in (
        ("dt", dt, (batch, length, width)),
        ("A", A, (width, None)),
        ("B", B, (batch, length, states)),
        ("C", C, (batch, length, states)),
        ("D", D, (width,)),
        ("z", z, (batch, length, width)),
        ("dt_bias", dt_bias, (width,)),
        ("state", state, (batch, width, states)),
    ):
        if tensor is not None:
            require_shape(op, name, tensor, shape)
    if state is None:
        state = A.new_zeros(batch, width, states)
    require_dtype(op, "state", state, torch.float32)
    result: tuple[torch.Tensor, torch.Tensor] = implementation(op, x)(
        x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, state=state
    )
    return result
