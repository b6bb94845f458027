"""The linear layer and the convolution, as the ops that they are made of."""

from __future__ import annotations

from typing import Any

import torch

from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.deferred_norm import DeferredNorm
from longspan.kernels.quantized_linear.any import linear_of_any


def linear_conv(
    x: torch.Tensor | DeferredNorm,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    first: int,
    scales: torch.Tensor | None = None,
    zeros: torch.Tensor | None = None,
    bits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.linear_conv.linear_conv`."""
    packing: dict[str, Any] = {"scales": scales, "zeros": zeros, "bits": bits}
    if isinstance(x, DeferredNorm):
        projected = x.divided(linear_of_any(x.row, weight, None, **packing), bias)
    else:
        projected = linear_of_any(x, weight, bias, **packing)
    return conv_of_part(projected, conv_weight, conv_bias, tail, first=first)


def conv_of_part(
    projected: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    first: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The channels before, those convolved, those after, and the new tail."""
    channels = conv_weight.shape[0]
    sizes = (first, channels, projected.shape[2] - first - channels)
    # Without the empty ones: a graph's Split gives no empty tensor.
    parts = iter(torch.split(projected, [size for size in sizes if size], dim=-1))
    before, u, after = (next(parts) if size else projected[..., :0] for size in sizes)
    # As the tail will hold it, so that a cut changes nothing where the tail is narrower than u.
    u = u.to(tail.dtype).to(u.dtype)
    u, tail = causal_conv(u, conv_weight, conv_bias, tail, activation="silu")
    return before, u, after, tail
