"""Causal depthwise convolution as ``com.microsoft::CausalConvWithState``, channels last."""

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
    dtype = x.dtype
    y, new_tail = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::CausalConvWithState",
        (x, weight.to(dtype), None if bias is None else bias.to(dtype), tail.to(dtype)),
        {"activation": activation or "none", "channels_last": 1, "ndim": 1},
        dtypes=(dtype, dtype),
        shapes=(x.shape, tail.shape),
        version=1,
    )
    return y, new_tail.to(tail.dtype)
