"""Linear layer of one row in Triton: a product of a matrix and a vector, at the speed of memory.

A program owns a few outputs and walks the whole of their rows of the weight. The next block of
weights is on its way while one is multiplied; each thread reads 16 bytes a row at a time. Nothing
is split over programs: a sum has one order.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations; its tuples grow.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.rows import as_rows

# Programs enough for two on each multiprocessor of a large GPU.
MIN_PROGRAMS = 256
# Bytes of a block of one row: 16 for each thread of four warps.
BLOCK_BYTES = 2048


@triton.jit
def load_weights(rows_ptr, start, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A block of columns of some rows of a weight; beyond the last column zeros."""
    column = start + tl.arange(0, BLOCK)[None, :]
    # Read once a token; x, which all programs read, stays in the first cache.
    return tl.load(rows_ptr + column, mask=column < WIDTH, other=0.0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["rows", "outputs"])
def _linear(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    rows,
    outputs,
    stride_x,
    stride_weight,
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
    # Rows beyond the last repeat it: no mask but the columns'.
    rows_ptr = weight_ptr + (tl.minimum(output, outputs - 1) * stride_weight)[:, None]
    ahead = ()
    for part in tl.static_range(DEPTH):
        ahead = ahead + (load_weights(rows_ptr, part * BLOCK, WIDTH, BLOCK),)
    # Weights do not depend on the launch before, x does.
    wait_for_last_launch(OVERLAP)

    total = tl.zeros([ROWS, BLOCK // NEIGHBOURS], dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * stride_x + column, mask=column < WIDTH, other=0.0)
        weights = ahead[0].to(x.dtype).to(tl.float32)
        ahead = ahead[1:] + (load_weights(rows_ptr, start + DEPTH * BLOCK, WIDTH, BLOCK),)
        products = weights * x.to(tl.float32)[None, :]
        # What lies in one thread is added up at once, which saves registers.
        total += tl.sum(tl.reshape(products, [ROWS, BLOCK // NEIGHBOURS, NEIGHBOURS]), axis=2)

    y = tl.sum(total, axis=1)
    real = output < outputs
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + output, mask=real, other=0.0)
        y += bias.to(x_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + row * outputs + output, y.to(y_ptr.dtype.element_ty), mask=real)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """See `longspan.kernels.linear.linear`; every row of x reads the weights anew."""
    outputs, width = weight.shape
    overlap = overlap_options(x, weight)
    flat = as_rows(x)
    rows = flat.shape[0]
    if weight.stride(1) != 1:
        weight = weight.contiguous()
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
        weight.stride(0),
        WIDTH=width,
        **block,
        **overlap,
    )
    return y


def row_block(outputs: int, width: int, element_bytes: int, *, depth: int) -> dict[str, int]:
    """Outputs of a program, columns of a block, neighbours in a thread, warps.

    Args:
        outputs: rows of the weight.
        width: its columns.
        element_bytes: of the weight.
        depth: blocks that are loaded ahead.
    """
    columns = min(BLOCK_BYTES // element_bytes, max(16, triton.next_power_of_2(width)))
    rows = 4
    while rows > 1 and triton.cdiv(outputs, rows) < MIN_PROGRAMS:
        rows //= 2
    return {
        "ROWS": rows,
        "BLOCK": columns,
        "NEIGHBOURS": 16 // element_bytes,
        "DEPTH": depth,
        "num_warps": 4,
    }
