"""Sum and norm in Triton: each program reads a few whole rows once, and the sum replaces x.

A thread has four neighbours of the float32 residual, which are 16 bytes, and of everything else:
with eight of bfloat16 the compiler would pass the sum through shared memory on its way out.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations; its tuples grow.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.rows import as_rows, check_width, row_block


@triton.jit(do_not_specialize=["rows"])
def _add_norm(
    x_ptr,
    y_ptr,
    weight_ptr,
    bias_ptr,
    normed_ptr,
    rows,
    width,
    eps,
    stride_x,
    stride_y,
    CENTRED: tl.constexpr,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    wait_for_last_launch(OVERLAP)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    x_ptr += row * stride_x
    # It is 0. For all that the compiler knows, only every fourth column is where 16 bytes begin.
    unaligned = tl.program_id(1) * 4
    mean = tl.zeros([ROWS], dtype=tl.float32)
    values = ()
    for part in tl.static_range(2 if REST > 0 else 1):
        column = unaligned + part * MAIN + tl.arange(0, REST if part > 0 else MAIN)[None, :]
        inside = (row < rows) & (column < width)
        x = tl.load(x_ptr + column, mask=inside, other=0.0)
        if y_ptr is not None:
            source = y_ptr + row * stride_y + column
            y = tl.load(source, mask=inside, other=0.0).to(x.dtype)
            x = (x.to(tl.float32) + y.to(tl.float32)).to(x.dtype)
            tl.store(x_ptr + column, x, mask=inside)
        s = x.to(tl.float32)
        if CENTRED:
            mean += tl.sum(s, axis=1) / width
        values = values + (s,)

    square = tl.zeros([ROWS], dtype=tl.float32)
    for part in tl.static_range(2 if REST > 0 else 1):
        column = unaligned + part * MAIN + tl.arange(0, REST if part > 0 else MAIN)[None, :]
        s = tl.where(column < width, values[part] - mean[:, None], 0.0)
        square += tl.sum(s * s, axis=1)
    root = (1.0 / tl.sqrt(square / width + eps))[:, None]
    for part in tl.static_range(2 if REST > 0 else 1):
        column = unaligned + part * MAIN + tl.arange(0, REST if part > 0 else MAIN)[None, :]
        real = column < width
        normed = (values[part] - mean[:, None]) * root
        normed *= tl.load(weight_ptr + column, mask=real, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            normed += tl.load(bias_ptr + column, mask=real, other=0.0).to(tl.float32)
        target = normed_ptr + row * width + column
        tl.store(target, normed.to(normed_ptr.dtype.element_ty), mask=(row < rows) & real)


def add_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    kind: str,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.add_norm.add_norm`."""
    width = x.shape[-1]
    check_width("add_norm", width)
    # A copy where rows of x do not lie evenly apart, or in the same place; then that is the sum.
    total = as_rows(x)
    total = total if total.stride(0) >= width else total.contiguous()
    added = None if y is None else as_rows(y)
    normed = torch.empty(x.shape, dtype=dtype, device=x.device)
    block = row_block(width, neighbours=4)
    _add_norm[(-(-total.shape[0] // block["ROWS"]),)](
        total,
        added,
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        normed,
        total.shape[0],
        width,
        eps,
        total.stride(0),
        0 if added is None else added.stride(0),
        CENTRED=kind == "layer",
        **block,
        **overlap_options(x),
    )
    return total.view(x.shape), normed
