"""RMSNorm in Triton: each program normalises a few whole rows and reads them once."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

# 65,536 float32 values over 16 warps are 128 registers a thread; a longer row would spill.
MAX_WIDTH = 65_536
# Values a program holds: narrow rows share a program, so that no launch has idle lanes.
BLOCK_VALUES = 2048


@triton.jit(do_not_specialize=["rows"])
def _rms_norm(
    x_ptr,
    weight_ptr,
    y_ptr,
    rows,
    width,
    eps,
    stride_row,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows) & (column < width)

    x = tl.load(x_ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
    mean_square = tl.sum(x * x, axis=1) / width
    y = x * (1.0 / tl.sqrt(mean_square + eps))[:, None]
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + column, mask=column < width, other=0.0)
        y = y * weight.to(tl.float32)
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, *, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    """See `longspan.kernels.rms_norm.rms_norm`."""
    width = x.shape[-1]
    if width > MAX_WIDTH:
        raise ValueError(
            f"rms_norm: x is {width} wide; the Triton kernel holds a row in registers, "
            f"{MAX_WIDTH} at most"
        )
    flat = x.reshape(-1, width)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    padded = triton.next_power_of_2(width)
    rows = max(1, BLOCK_VALUES // padded)
    grid = (triton.cdiv(flat.shape[0], rows),)
    _rms_norm[grid](
        flat,
        None if weight is None else weight.contiguous(),
        y,
        flat.shape[0],
        width,
        eps,
        flat.stride(0),
        ROWS=rows,
        WIDTH=padded,
        num_warps=min(16, max(4, padded // 1024)),
    )
    return y
