"""Rows of a matrix of 8 or 4 bits as standard operations, over the rows' bytes alone.

A number of 4 bits is taken out of its byte by arithmetic in float32, which holds every byte
exactly: ONNX Runtime has no shift of bits on CUDA. A whole matrix is left to
``com.microsoft::MatMulNBits``, which reads it as it is.
"""

from __future__ import annotations

import torch


def dequantize(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    bits: int,
    width: int,
    dtype: torch.dtype,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    """See `longspan.kernels.dequantize.dequantize`; `rows` must be given."""
    assert rows is not None, "a graph never holds a whole matrix dequantised"
    blocks = weight.shape[1]
    # One index for each, of one dimension: a Gather of whole rows.
    flat = rows.flatten()
    numbers = _unpacked(weight.index_select(0, flat), bits)
    scale = scales.index_select(0, flat)[..., None].to(torch.float32)
    if zeros is None:
        numbers = numbers - float(2 ** (bits - 1))
    else:
        numbers = numbers - _unpacked(zeros.index_select(0, flat), bits)[:, :blocks, None]
    result = (numbers * scale).flatten(-2)[:, :width].to(dtype)
    return result.view(*rows.shape, width)


def _unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers of uint8 [..., n] as float32 [..., 8 n / bits]."""
    numbers = packed.to(torch.float32)
    if bits == 8:
        return numbers
    high = torch.floor(numbers / 16)
    return torch.stack([numbers - high * 16, high], dim=-1).flatten(-2)
