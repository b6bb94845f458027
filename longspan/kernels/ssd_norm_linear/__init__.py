"""The state-space dual with what follows it in Mamba-2: gated RMSNorm and a linear layer."""

from __future__ import annotations

import math

import torch

from longspan.kernels.checks import require_shape
from longspan.kernels.choice import implementation
from longspan.kernels.deferred_norm import Added, NextNorm
from longspan.kernels.dequantize import check_matrix
from longspan.kernels.ssd import check_dual

__all__ = ["ssd_norm_linear"]


def ssd_norm_linear(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    z: torch.Tensor,
    norm_weight: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    eps: float,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    state: torch.Tensor,
    scales: torch.Tensor | None = None,
    zeros: torch.Tensor | None = None,
    bits: int | None = None,
    then: NextNorm | None = None,
) -> tuple[torch.Tensor | Added, torch.Tensor]:
    """Compute ``norm(y silu(z)) @ weight.T + bias`` of the dual's y (arXiv 2405.21060, figure 6).

    y is what `ssd` gives, E = H P channels of a token. The norm is `rms_norm` with a mean square
    for each of the G groups of B and C, computed in float32 and rounded to the dtype of `x`.

    Args:
        x: float [B, L, H, P], as `ssd` reads it.
        dt: float [B, L, H], see `ssd`.
        A: float32 [H], see `ssd`.
        B: dtype of `x` [B, L, G, N].
        C: dtype of `x` [B, L, G, N].
        z: float [B, L, E], the gate before SiLU.
        norm_weight: float [E].
        weight: float [O, E]; cast to the dtype of `x` if it is stored in another. With `bits`,
            uint8 [O, blocks, bytes of a block], see `longspan.kernels.dequantize`.
        bias: float [O], or None.
        eps: added to the mean square, > 0.
        D: float [H] or [H, P], or None; see `ssd`.
        dt_bias: float [H], or None; see `ssd`.
        dt_limit: smallest and largest step.
        state: float32 [B, H, N, P], before the first token.
        scales: float [O, blocks] of a weight of 8 or 4 bits, else None.
        zeros: uint8 [O, ceil(blocks bits / 8)] of such a weight, or None.
        bits: of a number of such a weight, 4 or 8; None for floating point.
        then: what the result is added to, and the norm of the sum; None for neither.

    Returns:
        dtype of `x` [B, L, O], or with `then` the sum and its norm; and the state after the last
        token, float32 [B, H, N, P].

    Raises:
        ValueError: a shape, a dtype, `dt_limit` or `bits` does not fit.
    """
    op = "ssd_norm_linear"
    inner = x.shape[2] * x.shape[3]
    require_shape(op, "z", z, (*x.shape[:2], inner))
    require_shape(op, "norm_weight", norm_weight, (inner,))
    check_matrix(op, weight, scales, zeros, bits=bits, width=inner)
    if bias is not None:
        require_shape(op, "bias", bias, (weight.shape[0],))
    if then is not None:
        require_shape(op, "residual", then.residual, (*x.shape[:2], weight.shape[0]))
        require_shape(op, "weight of the next norm", then.weight, (weight.shape[0],))
    check_dual(op, x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_limit=dt_limit, state=state)
    result: tuple[torch.Tensor | Added, torch.Tensor] = implementation(op, x)(
        x, dt, A, B, C, z, norm_weight, weight, bias,
        eps=eps, D=D, dt_bias=dt_bias, dt_limit=dt_limit, state=state,
        scales=scales, zeros=zeros, bits=bits, then=then,
    )  # fmt: skip
    return result
