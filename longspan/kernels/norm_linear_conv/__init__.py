"""The residual's sum and RMSNorm, a linear layer, and the causal convolution of a part of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan.kernels.checks import require_shape
from longspan.kernels.choice import implementation

__all__ = ["AddNorm", "norm_linear_conv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddNorm:
    """What precedes the linear layer: `add_norm` of kind ``"rms"``.

    Attributes:
        y: float [B, L, D], what is added to x; None for nothing.
        weight: float [D].
        eps: added to the mean square, > 0.
        dtype: that the norm is rounded to, of the linear layer and all after it.
    """

    y: torch.Tensor | None
    weight: torch.Tensor
    eps: float
    dtype: torch.dtype


def norm_linear_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    first: int,
    norm: AddNorm | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute ``p = norm(x + y) @ weight.T + bias``, and convolve E channels of p, with SiLU.

    What goes into the convolution is rounded to the dtype of `tail`, so that a cut between tokens
    changes nothing.

    Args:
        x: float [B, L, D], the residual. The sum may take its place in memory: do not read `x`
            after the call.
        weight: float [O, D]; cast to the dtype of the norm if it is stored in another.
        bias: float [O], or None.
        conv_weight: float [E, 1, K], see `causal_conv`.
        conv_bias: float [E], or None.
        tail: float [B, K-1, E], the last K-1 inputs of the convolution, oldest first.
        first: channels of p before those that are convolved, F; F + E is at most O.
        norm: the sum and the norm; None where x is what the linear layer reads.

    Returns:
        The sum, dtype of `x` [B, L, D], which is x itself where nothing is added; of p the channels
        before [B, L, F], those convolved [B, L, E] and those after [B, L, O-F-E], in the dtype of
        the norm; and the new tail [B, K-1, E].

    Raises:
        ValueError: a shape does not match.
    """
    op = "norm_linear_conv"
    width, channels = x.shape[2], conv_weight.shape[0]
    require_shape(op, "weight", weight, (None, width))
    if bias is not None:
        require_shape(op, "bias", bias, (weight.shape[0],))
    require_shape(op, "conv_weight", conv_weight, (channels, 1, None))
    if conv_bias is not None:
        require_shape(op, "conv_bias", conv_bias, (channels,))
    require_shape(op, "tail", tail, (x.shape[0], conv_weight.shape[2] - 1, channels))
    if norm is not None:
        require_shape(op, "norm.weight", norm.weight, (width,))
        if norm.y is not None:
            require_shape(op, "norm.y", norm.y, tuple(x.shape))
    if not 0 <= first <= weight.shape[0] - channels:
        raise ValueError(
            f"{op}: first is {first}; {channels} channels of {weight.shape[0]} are convolved, so "
            f"it must be from 0 to {weight.shape[0] - channels}"
        )
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] = (
        implementation(op, x)(x, weight, bias, conv_weight, conv_bias, tail, first=first, norm=norm)
    )
    return result
