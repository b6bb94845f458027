"""A linear layer, and the causal convolution of a part of what it gives."""

from __future__ import annotations

import torch

from longspan.kernels.checks import require_shape
from longspan.kernels.choice import implementation
from longspan.kernels.deferred_norm import DeferredNorm
from longspan.kernels.dequantize import check_matrix

__all__ = ["linear_conv"]


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
    """Compute ``p = x @ weight.T + bias``, and convolve E channels of p, with SiLU.

    What goes into the convolution is rounded to the dtype of `tail`, so that a cut between tokens
    changes nothing.

    Args:
        x: float [B, L, D], or a norm of such rows that this op is to divide.
        weight: float [O, D]; cast to the dtype of `x` if it is stored in another. With `bits`,
            uint8 [O, blocks, bytes of a block], see `longspan.kernels.dequantize`.
        bias: float [O], or None.
        conv_weight: float [E, 1, K], see `causal_conv`.
        conv_bias: float [E], or None.
        tail: float [B, K-1, E], the last K-1 inputs of the convolution, oldest first.
        first: channels of p before those that are convolved, F; F + E is at most O.
        scales: float [O, blocks] of a weight of 8 or 4 bits, else None.
        zeros: uint8 [O, ceil(blocks bits / 8)] of such a weight, or None.
        bits: of a number of such a weight, 4 or 8; None for floating point.

    Returns:
        Of p the channels before [B, L, F], those convolved [B, L, E] and those after
        [B, L, O-F-E], in the dtype of `x`; and the new tail [B, K-1, E].

    Raises:
        ValueError: a shape does not match, or `bits` is neither 4 nor 8.
    """
    op = "linear_conv"
    row = x.row if isinstance(x, DeferredNorm) else x
    channels = conv_weight.shape[0]
    check_matrix(op, weight, scales, zeros, bits=bits, width=row.shape[2])
    if bias is not None:
        require_shape(op, "bias", bias, (weight.shape[0],))
    require_shape(op, "conv_weight", conv_weight, (channels, 1, None))
    if conv_bias is not None:
        require_shape(op, "conv_bias", conv_bias, (channels,))
    require_shape(op, "tail", tail, (row.shape[0], conv_weight.shape[2] - 1, channels))
    if not 0 <= first <= weight.shape[0] - channels:
        raise ValueError(
            f"{op}: first is {first}; {channels} channels of {weight.shape[0]} are convolved, so "
            f"it must be from 0 to {weight.shape[0] - channels}"
        )
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] = implementation(op, row)(
        x,
        weight,
        bias,
        conv_weight,
        conv_bias,
        tail,
        first=first,
        scales=scales,
        zeros=zeros,
        bits=bits,
    )
    return result
