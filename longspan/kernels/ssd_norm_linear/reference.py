"""The state-space dual, gated norm and linear layer, as the ops that they are made of."""

from __future__ import annotations

import torch

from longspan.kernels.deferred_norm import Added, NextNorm
from longspan.kernels.quantized_linear.any import linear_of_any
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.ssd import ssd


def ssd_norm_linear(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    z: torch.Tensor,
    norm_weight: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    eps: float,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_limit: tuple[float, float],
    state: torch.Tensor,
    scales: torch.Tensor | None = None,
    zeros: torch.Tensor | None = None,
    bits: int | None = None,
    then: NextNorm | None = None,
) -> tuple[torch.Tensor | Added, torch.Tensor]:
    """See `longspan.kernels.ssd_norm_linear.ssd_norm_linear`."""
    y, state = ssd(x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_limit=dt_limit, state=state)
    y = gated_norm(y.flatten(-2), z, norm_weight, B.shape[2], eps)
    y = linear_of_any(y, weight, bias, scales=scales, zeros=zeros, bits=bits)
    return y if then is None else then.add(y), state


def gated_norm(
    y: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, groups: int, eps: float
) -> torch.Tensor:
    """RMSNorm of y silu(z), all [B, L, E], with one mean square for each group of E / G channels.

    It computes in float32: the product of two activations has twice their digits. Do not read y
    after the call: its memory may hold the result.
    """
    if groups == 1:
        return rms_norm(y, weight, eps=eps, gate=z, gate_first=True, overwrite=True)
    by_group = (*y.shape[:-1], groups, y.shape[-1] // groups)
    return rms_norm(
        y.view(by_group), weight.view(by_group[-2:]),
        eps=eps, gate=z.view(by_group), gate_first=True, overwrite=True,
    ).flatten(-2)  # fmt: skip
