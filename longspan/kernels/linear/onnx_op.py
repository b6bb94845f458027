"""Linear layer as ``com.microsoft::FusedMatMul`` with ``transB=1``.

ONNX Runtime keeps such a weight mapped from its file; for `Transpose` + `MatMul`, which the
exporter makes of `nn.Linear`, it folds the transpose into a second copy of the weights.
"""

from __future__ import annotations

import torch


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `longspan.kernels.linear.linear`."""
    assert out is None, "a graph's values lie where its runtime puts them"
    product: torch.Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::FusedMatMul",
        (x, weight.to(x.dtype)),
        {"transB": 1},
        dtype=x.dtype,
        shape=(*x.shape[:-1], weight.shape[0]),
        version=1,
    )
    return product if bias is None else product + bias.to(x.dtype)
