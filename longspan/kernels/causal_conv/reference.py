"""Causal depthwise convolution, plain torch.

y_t[e] = b[e] + sum_{j<K} w[e, j] * x_{t-K+1+j}[e]   (Mamba, arXiv 2312.00752, section 3.4)
"""

from __future__ import annotations

import torch


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.causal_conv.causal_conv`."""
    length = x.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    inputs = torch.cat([tail.to(x.dtype), x], dim=1)
    taps = weight.shape[2]
    y = sum(inputs[:, j : j + length].to(wide) * weight[:, 0, j].to(wide) for j in range(taps))
    assert isinstance(y, torch.Tensor), "a convolution has at least one tap"
    if bias is not None:
        y = y + bias.to(wide)
    if activation == "silu":
        y = torch.nn.functional.silu(y)
    # A copy: a view would keep the inputs of the whole call alive.
    return y.to(x.dtype), inputs[:, length:].to(tail.dtype, copy=True)
