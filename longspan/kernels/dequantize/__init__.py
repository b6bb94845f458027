"""A matrix of 8 or 4 bits as floating point: all of it, or some of its rows."""

from __future__ import annotations

import torch

from longspan.kernels.checks import require_shape
from longspan.kernels.choice import implementation

__all__ = ["check_matrix", "check_quantized", "dequantize"]


def dequantize(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None = None,
    *,
    bits: int,
    width: int,
    dtype: torch.dtype,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute ``scale (q - zero)`` for every number q of a matrix [N, K] stored in blocks.

    Args:
        weight: uint8 [N, blocks, bytes of a block], as ``com.microsoft::MatMulNBits`` has it: of
            4 bits, a byte holds two numbers, the first in its low half.
        scales: float [N, blocks].
        zeros: uint8 [N, ceil(blocks bits / 8)], packed likewise; None for 8 of 4 bits, 128 of 8.
        bits: of a number, 4 or 8.
        width: K; what a row's last block holds beyond it is dropped.
        dtype: of the result, rounded once from float32 (float64 from float64).
        rows: int64 [...], the rows that are wanted; None for all.

    Returns:
        `dtype` [N, K], or [..., K] of the rows.

    Raises:
        ValueError: the shapes do not match, or `bits` is neither 4 nor 8.
    """
    check_quantized("dequantize", weight, scales, zeros, bits=bits, width=width)
    result: torch.Tensor = implementation("dequantize", weight)(
        weight, scales, zeros, bits=bits, width=width, dtype=dtype, rows=rows
    )
    return result


def check_quantized(
    op: str,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    bits: int,
    width: int,
) -> None:
    """Check that weight, scales and zero points belong together.

    Raises:
        ValueError: they do not.
    """
    if bits not in (4, 8):
        raise ValueError(f"{op}: bits is {bits}; it must be 4 or 8")
    block = weight.shape[-1] * 8 // bits
    blocks = -(-width // block)
    require_shape(op, "weight", weight, (None, blocks, None))
    require_shape(op, "scales", scales, (weight.shape[0], blocks))
    if zeros is not None:
        require_shape(op, "zeros", zeros, (weight.shape[0], -(-blocks * bits // 8)))


def check_matrix(
    op: str,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    zeros: torch.Tensor | None,
    *,
    bits: int | None,
    width: int,
) -> None:
    """Check a matrix of `width` columns: of floating point where `bits` is None, or packed.

    Raises:
        ValueError: it does not fit.
    """
    if bits is None:
        if scales is not None or zeros is not None:
            raise ValueError(
                f"{op}: scales or zeros are given, but bits is None; they belong to a weight of "
                "8 or 4 bits"
            )
        require_shape(op, "weight", weight, (None, width))
    elif scales is None:
        raise ValueError(f"{op}: bits is {bits}, but scales is None; each block has a scale")
    else:
        check_quantized(op, weight, scales, zeros, bits=bits, width=width)
