"""Linear layer of one row in Triton: a product of a matrix and a vector, at the speed of memory.

A program owns a few outputs and walks the whole of their rows of the weight.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.linear.triton_rows import multiply_rows, row_block, start_rows
from longspan.kernels.rows import as_rows


@triton.jit(do_not_specialize=["rows", "outputs"])
def _linear(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    rows,
    outputs,
    stride_x,
    # Known while compiling: rows that are no multiple of 16 bytes apart still load 8 or 4 at once.
    STRIDE_WEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    program = tl.program_id(0).to(tl.int64)
    row = program % rows
    output = program // rows * ROWS + tl.arange(0, ROWS)
    rows_ptr, ahead = start_rows(weight_ptr, output, outputs, STRIDE_WEIGHT, WIDTH, BLOCK, DEPTH)
    # Weights do not depend on the launch before, x does.
    wait_for_last_launch(OVERLAP)

    y = multiply_rows(
        rows_ptr, ahead, x_ptr + row * stride_x, None, None, y_ptr,
        WIDTH, 1, ROWS, BLOCK, NEIGHBOURS, DEPTH,
    )  # fmt: skip
    real = output < outputs
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + output, mask=real, other=0.0)
        y += bias.to(x_ptr.dtype.element_ty).to(tl.float32)
    y = y.to(x_ptr.dtype.element_ty).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * outputs + output, y, mask=real)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `longspan.kernels.linear.linear`; every row of x reads the weights anew."""
    outputs, width = weight.shape
    overlap = overlap_options(x, weight)
    flat = as_rows(x)
    rows = flat.shape[0]
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    y = out
    if y is None:
        y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    block = row_block(outputs, width, weight.element_size(), depth=2)
    _linear[(triton.cdiv(outputs, block["ROWS"]) * rows,)](
        flat,
        weight,
        None if bias is None else bias.contiguous(),
        y,
        rows,
        outputs,
        flat.stride(0),
        STRIDE_WEIGHT=weight.stride(0),
        WIDTH=width,
        **block,
        **overlap,
    )
    return y
