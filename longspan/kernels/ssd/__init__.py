"""The state-space dual of Mamba-2 (arXiv 2405.21060, equation 1), from a state to a state."""

from __future__ import annotations

import math

import torch

from longspan.kernels.checks import require_dtype, require_shapes
from longspan.kernels.choice import implementation

__all__ = ["ssd"]


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the recurrence over L tokens, in each of H heads with a decay of its own.

    With step_t = softplus(dt_t + dt_bias), held between the two values of `dt_limit`:

        h_t = exp(step_t A) h_{t-1} + step_t B_t x_t^T,   y_t = C_t . h_t + D x_t

    Head h reads group h // (H / G) of B and C.

    Args:
        x: float [B, L, H, P], the convolved input, L >= 1.
        dt: float [B, L, H], before bias and softplus.
        A: float32 [H], negative.
        B: dtype of `x` [B, L, G, N]; G divides H.
        C: dtype of `x` [B, L, G, N].
        D: float [H] or [H, P], the skip, or None for none.
        dt_bias: float [H], or None for none.
        dt_limit: smallest and largest step.
        state: float32 [B, H, N, P], h before the first token; None for zeros.

    Returns:
        y, dtype of `x` [B, L, H, P], and h after the last token, float32 [B, H, N, P].

    Raises:
        ValueError: a shape, a dtype or `dt_limit` does not fit.
    """
    if state is None:
        batch, _, heads, width = x.shape
        state = A.new_zeros(batch, heads, B.shape[3], width)
    check_dual("ssd", x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_limit=dt_limit, state=state)
    result: tuple[torch.Tensor, torch.Tensor] = implementation("ssd", x)(
        x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_limit=dt_limit, state=state
    )
    return result


def check_dual(
    op: str,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_limit: tuple[float, float],
    state: torch.Tensor,
) -> None:
    """Raise unless these are arguments of the dual, for `ssd` and what is built upon it.

    Raises:
        ValueError: a shape, a dtype or `dt_limit` does not fit.
    """
    batch, length, heads, width = x.shape
    groups, states = B.shape[-2:]
    require_dtype(op, "A", A, torch.float32)
    require_dtype(op, "B", B, x.dtype)
    require_dtype(op, "C", C, x.dtype)
    require_shapes(
        op,
        ("dt", dt, (batch, length, heads)),
        ("A", A, (heads,)),
        ("B", B, (batch, length, groups, states)),
        ("C", C, (batch, length, groups, states)),
        ("D", D, (heads,) if D is None or D.dim() == 1 else (heads, width)),
        ("dt_bias", dt_bias, (heads,)),
        ("state", state, (batch, heads, states, width)),
    )
    if heads % groups != 0:
        raise ValueError(f"{op}: B has {groups} groups for {heads} heads; groups must divide heads")
    if not 0.0 <= dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"{op}: dt_limit is {dt_limit}; it must be (smallest, largest), from 0 up")
    require_dtype(op, "state", state, torch.float32)
