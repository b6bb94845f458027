"""A linear layer whose weight is stored in 8 or 4 bits."""

from __future__ import annotations

import torch

from longspan.kernels.checks import check_out, require_shape
from longspan.kernels.choice import implementation
from longspan.kernels.deferred_norm import DeferredNorm
from longspan.kernels.dequantize import check_quantized

__all__ = ["quantized_linear"]


def quantized_linear(
    x: torch.Tensor | DeferredNorm,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    bits: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute ``x @ W.T + bias`` in the dtype of `x`, W as `longspan.kernels.dequantize` tells.

    Args:
        x: float [..., K], or a norm of one such row that this op is to divide.
        weight: uint8 [N, blocks, bytes of a block].
        scales: float [N, blocks].
        zeros: uint8 [N, ceil(blocks bits / 8)]; None for half of the range.
        bias: float [N], or None.
        bits: of a number of W, 4 or 8.
        out: float32 [..., N] contiguous, that takes the result, rounded to the dtype of `x`
            first; None for new memory.

    Returns:
        dtype of `x` [..., N], or `out`.

    Raises:
        ValueError: the shapes do not match, or `bits` is neither 4 nor 8.
    """
    op = "quantized_linear"
    row = x.row if isinstance(x, DeferredNorm) else x
    check_quantized(op, weight, scales, zeros, bits=bits, width=row.shape[-1])
    if bias is not None:
        require_shape(op, "bias", bias, (weight.shape[0],))
    if out is not None:
        check_out(op, out, (*row.shape[:-1], weight.shape[0]))
    if isinstance(x, DeferredNorm) and row.shape[:-1].numel() != 1:
        raise ValueError(f"{op}: x is a norm of {row.shape[:-1].numel()} rows; it must be of one")
    if not torch.onnx.is_in_onnx_export() and not row.numel():
        # No row wants logits while a text is read: nothing to dequantise for.
        return row.new_empty(*row.shape[:-1], weight.shape[0]) if out is None else out
    result: torch.Tensor = implementation(op, row)(
        x, weight, scales, zeros, bias, bits=bits, out=out
    )
    return result
