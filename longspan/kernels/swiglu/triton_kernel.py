"""SiLU gate in Triton: one launch, each value read once; rows may be parts of wider ones."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.rows import as_rows

# 2,048 values over 4 warps: two loads of 16 bytes of each side are in flight a thread.
BLOCK_VALUES = 2048
# Columns of a block; narrower rows share a program.
BLOCK_COLUMNS = 1024


@triton.jit(do_not_specialize=["rows"])
def _swiglu(
    gate_ptr,
    x_ptr,
    y_ptr,
    rows,
    width,
    stride_gate,
    stride_x,
    stride_y,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    wait_for_last_launch(OVERLAP)
    blocks = tl.cdiv(width, COLUMNS)
    block = tl.program_id(0)
    row = (block // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (block % blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    gate = tl.load(gate_ptr + row * stride_gate + column, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * x
    tl.store(y_ptr + row * stride_y + column, y.to(y_ptr.dtype.element_ty), mask=inside)


def swiglu(gate: torch.Tensor, x: torch.Tensor, *, overwrite: bool = False) -> torch.Tensor:
    """See `longspan.kernels.swiglu.swiglu`."""
    width = x.shape[-1]
    gates, values = as_rows(gate), as_rows(x)
    # A block is read before it is written, by the program that writes it.
    in_place = overwrite and gate.dtype == x.dtype
    y = gates if in_place else torch.empty(values.shape, dtype=x.dtype, device=x.device)
    columns = min(BLOCK_COLUMNS, triton.next_power_of_2(width))
    # A single row, as in decoding, is spread over more programs.
    rows = 1 if len(values) == 1 else BLOCK_VALUES // columns
    grid = (triton.cdiv(len(values), rows) * triton.cdiv(width, columns),)
    _swiglu[grid](
        gates,
        values,
        y,
        len(values),
        width,
        gates.stride(0),
        values.stride(0),
        y.stride(0),
        ROWS=rows,
        COLUMNS=columns,
        num_warps=4,
        **overlap_options(x),
    )
    return y.view(x.shape)
