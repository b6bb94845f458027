"""The stream that layers add to, whose next reader takes the last sum and its norm at once.

    residual = Residual(x, layer.norm, torch.bfloat16)
    normed = residual.normed()                # for a mixer that reads a tensor
    residual.y, state = mixer(normed, state)  # added by whoever reads next

A mixer whose class says `reads_residual = True` takes the residual itself, and begins with
`project`: sum, norm, linear layer and convolution, one launch for one token.
"""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.norm_linear_conv import AddNorm, norm_linear_conv
from longspan.kernels.norm_linear_conv.reference import conv_of_part
from longspan.models.linear import Linear
from longspan.models.norm import RmsNorm


class Residual:
    """The residual before a layer.

    Attributes:
        x: float [B, L, D], the sum so far.
        y: float [B, L, D], what is still to be added to it; None for nothing.
        norm: the layer's.
        dtype: of what the norm gives.
    """

    def __init__(self, x: torch.Tensor, norm: nn.Module, dtype: torch.dtype) -> None:
        self.x, self.norm, self.dtype = x, norm, dtype
        self.y: torch.Tensor | None = None

    def normed(self) -> torch.Tensor:
        """Add y to x, and give the norm of the sum."""
        self.x, normed = self.norm(self.x, self.y, self.dtype)
        self.y = None
        result: torch.Tensor = normed
        return result


def project(
    x: torch.Tensor | Residual,
    in_proj: Linear,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    first: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Project the norm of a residual, or an x [B, L, D] as it is, and convolve a part with SiLU.

    Args:
        x: what to read. A residual is left with its sum.
        in_proj: gives O channels; its weight may be quantised.
        conv_weight: float [E, 1, K].
        conv_bias: float [E], or None.
        tail: float [B, K-1, E], the last inputs of the convolution.
        first: channels before those that are convolved.

    Returns:
        The channels before, those convolved and those after, [B, L, ...], and the new tail.
    """
    quantised = not in_proj.weight.is_floating_point()
    weights = (in_proj.weight, in_proj.bias, conv_weight, conv_bias)
    if isinstance(x, Residual) and isinstance(x.norm, RmsNorm) and not quantised:
        norm = AddNorm(y=x.y, weight=x.norm.weight, eps=x.norm.eps, dtype=x.dtype)
        x.x, before, u, after, tail = norm_linear_conv(x.x, *weights, tail, first=first, norm=norm)
        x.y = None
        return before, u, after, tail
    if isinstance(x, Residual):
        x = x.normed()
    if quantised:
        return conv_of_part(in_proj(x), conv_weight, conv_bias, tail, first=first)
    _, before, u, after, tail = norm_linear_conv(x, *weights, tail, first=first)
    return before, u, after, tail
