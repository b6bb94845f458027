"""Causal depthwise convolution that goes on from the inputs before it."""

from __future__ import annotations

from typing import Literal

import torch

from longspan.kernels.checks import require_shape
from longspan.kernels.choice import implementation

__all__ = ["causal_conv"]


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    tail: torch.Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve each channel with its own K taps; tap K-1 multiplies the current token.

    Args:
        x: float [B, L, E], L >= 1.
        weight: float [E, 1, K].
        bias: float [E], or None.
        tail: dtype of `x` [B, K-1, E], the last K-1 inputs before `x`, oldest first; None for
            zeros (nothing was read).
        activation: ``"silu"`` applies x * sigmoid(x) to the output.

    Returns:
        The output, dtype of `x` [B, L, E], and the new tail [B, K-1, E].

    Raises:
        ValueError: a shape does not match.
    """
    batch, _, width = x.shape
    require_shape("causal_conv", "weight", weight, (width, 1, None))
    if bias is not None:
        require_shape("causal_conv", "bias", bias, (width,))
    taps = weight.shape[2]
    if tail is None:
        tail = x.new_zeros(batch, taps - 1, width)
    require_shape("causal_conv", "tail", tail, (batch, taps - 1, width))
    result: tuple[torch.Tensor, torch.Tensor] = implementation("causal_conv", x)(
        x, weight, bias, tail, activation=activation
    )
    return result
