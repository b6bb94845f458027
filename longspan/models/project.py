"""How Mamba's layers begin: a linear layer, and the convolution of a part of what it gives."""

from __future__ import annotations

import torch

from longspan.kernels.deferred_norm import DeferredNorm
from longspan.kernels.linear_conv import linear_conv
from longspan.models.linear import Linear


def project(
    x: torch.Tensor | DeferredNorm,
    in_proj: Linear,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    first: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Project x [B, L, D] to O channels, and convolve a part of them with SiLU.

    Args:
        x: what the layer reads, or the norm that it is before its division.
        in_proj: gives O channels; its weight may be quantised.
        conv_weight: float [E, 1, K].
        conv_bias: float [E], or None.
        tail: float [B, K-1, E], the last inputs of the convolution.
        first: channels before those that are convolved.

    Returns:
        The channels before, those convolved and those after, [B, L, ...], and the new tail.
    """
    return linear_conv(
        x, in_proj.weight, in_proj.bias, conv_weight, conv_bias, tail,
        first=first, **in_proj.packing,
    )  # fmt: skip
