"""A matrix of 8 or 4 bits as floating point in Triton: every byte is read once."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch

# Rows and bytes of a row that a program reads: 16 bytes for each thread of four warps.
ROWS, BYTES = 8, 256


@triton.jit
def load_zeros(zeros_ptr, row, block, stride, mask, BITS: tl.constexpr):
    """Zero points of blocks of rows, float32; half of the range where none are stored."""
    if zeros_ptr is None:
        zero = tl.full([1, 1], 2 ** (BITS - 1), tl.float32)
    elif BITS == 8:
        zero = tl.load(zeros_ptr + row * stride + block, mask=mask, other=0).to(tl.float32)
    else:
        byte = tl.load(zeros_ptr + row * stride + block // 2, mask=mask, other=0).to(tl.int32)
        zero = ((byte >> (block % 2) * 4) & 15).to(tl.float32)
    return zero


@triton.jit(do_not_specialize=["outputs"])
def _dequantize(
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    rows_ptr,
    result_ptr,
    outputs,
    row_bytes,
    width,
    stride_zeros,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    wait_for_last_launch(OVERLAP)
    pieces = tl.cdiv(row_bytes, BYTES)
    program = tl.program_id(0).to(tl.int64)
    to = program // pieces * ROWS + tl.arange(0, ROWS)
    real = to < outputs
    row = to
    if rows_ptr is not None:
        row = tl.load(rows_ptr + to, mask=real, other=0)
    byte = program % pieces * BYTES + tl.arange(0, BYTES)
    inside = real[:, None] & (byte < row_bytes)[None, :]
    packed = tl.load(weight_ptr + row[:, None] * row_bytes + byte[None, :], mask=inside, other=0)
    packed = packed.to(tl.int32)

    BLOCK_BYTES: tl.constexpr = BLOCK * BITS // 8
    block = (byte // BLOCK_BYTES)[None, :]
    blocks = row_bytes // BLOCK_BYTES
    scale = tl.load(scales_ptr + row[:, None] * blocks + block, mask=inside, other=0.0)
    scale = scale.to(tl.float32)
    zero = load_zeros(zeros_ptr, row[:, None], block, stride_zeros, inside, BITS)
    if BITS == 8:
        numbers = (packed.to(tl.float32) - zero) * scale
        column = byte
    else:
        low = ((packed & 15).to(tl.float32) - zero) * scale
        high = ((packed >> 4).to(tl.float32) - zero) * scale
        numbers = tl.interleave(low, high)
        column = program % pieces * (2 * BYTES) + tl.arange(0, 2 * BYTES)
    tl.store(
        result_ptr + to[:, None] * width + column[None, :],
        numbers.to(result_ptr.dtype.element_ty),
        mask=real[:, None] & (column < width)[None, :],
    )


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
    """See `longspan.kernels.dequantize.dequantize`."""
    overlap = overlap_options(weight)
    weight, scales = weight.contiguous(), scales.contiguous()
    zeros = None if zeros is None else zeros.contiguous()
    shape = weight.shape[:1] if rows is None else rows.shape
    result = torch.empty(*shape, width, dtype=dtype, device=weight.device)
    row_bytes = weight.shape[1] * weight.shape[2]
    outputs = shape.numel()
    _dequantize[(triton.cdiv(outputs, ROWS) * triton.cdiv(row_bytes, BYTES),)](
        weight,
        scales,
        zeros,
        None if rows is None else rows.contiguous(),
        result,
        outputs,
        row_bytes,
        width,
        0 if zeros is None else zeros.stride(0),
        BITS=bits,
        BLOCK=weight.shape[2] * 8 // bits,
        ROWS=ROWS,
        BYTES=BYTES,
        **overlap,
        num_warps=4,
    )
    return result
