"""Some rows of a matrix of floating point times one vector, in a program's registers.

The next block of weights is on its way while one is multiplied; each thread reads 16 bytes a row at
a time. Nothing is split over programs: a sum has one order.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations; its tuples grow.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,misc"
from __future__ import annotations

import triton
import triton.language as tl

# Programs enough for two on each multiprocessor of a large GPU.
MIN_PROGRAMS = 256
# Bytes of a block of one row: 16 for each thread of four warps.
BLOCK_BYTES = 2048


@triton.jit
def load_x(x_ptr, norm_ptr, roots, y_ptr, column, mask, WIDTH: tl.constexpr, GROUPS: tl.constexpr):
    """Numbers of x; with a norm's weights, what it makes of them, in the dtype of y.

    The groups' WIDTH / GROUPS numbers are multiplied by a root each, of the GROUPS in `roots`.
    """
    x = tl.load(x_ptr + column, mask=mask, other=0.0)
    if norm_ptr is not None:
        scale = tl.load(norm_ptr + column, mask=mask, other=0.0).to(tl.float32)
        root = roots[0]
        for group in tl.static_range(1, GROUPS):
            root = tl.where(column >= group * (WIDTH // GROUPS), roots[group], root)
        x = (x * root * scale).to(y_ptr.dtype.element_ty)
    return x


@triton.jit
def _load_weights(rows_ptr, start, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A block of columns of some rows of a weight; beyond the last column zeros."""
    column = start + tl.arange(0, BLOCK)[None, :]
    # Read once a token; x, which all programs read, stays in the first cache.
    return tl.load(rows_ptr + column, mask=column < WIDTH, other=0.0, eviction_policy="evict_first")


@triton.jit
def start_rows(
    weight_ptr,
    output,
    outputs,
    stride_weight,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The rows' addresses, and their first blocks, on the way."""
    # Rows beyond the last repeat it: no mask but the columns'.
    rows_ptr = weight_ptr + (tl.minimum(output, outputs - 1) * stride_weight)[:, None]
    ahead = ()
    for part in tl.static_range(DEPTH):
        ahead = ahead + (_load_weights(rows_ptr, part * BLOCK, WIDTH, BLOCK),)
    return rows_ptr, ahead


@triton.jit
def multiply_rows(
    rows_ptr,
    ahead,
    x_ptr,
    norm_ptr,
    roots,
    y_ptr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The rows, begun by `start_rows`, times x: float32 [ROWS]."""
    total = tl.zeros([ROWS, BLOCK // NEIGHBOURS], dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = load_x(x_ptr, norm_ptr, roots, y_ptr, column, column < WIDTH, WIDTH, GROUPS)
        weights = ahead[0].to(x.dtype).to(tl.float32)
        ahead = ahead[1:] + (_load_weights(rows_ptr, start + DEPTH * BLOCK, WIDTH, BLOCK),)
        products = weights * x.to(tl.float32)[None, :]
        # What lies in one thread is added up at once, which saves registers.
        total += tl.sum(tl.reshape(products, [ROWS, BLOCK // NEIGHBOURS, NEIGHBOURS]), axis=2)
    return tl.sum(total, axis=1)


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
