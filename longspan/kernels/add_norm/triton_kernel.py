"""Sum and norm in Triton: each program reads a few whole rows once, and the sum replaces x."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.rows import as_rows, check_width, row_block, row_warps


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
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    real = column < width
    inside = (row < rows) & real

    x = tl.load(x_ptr + row * stride_x + column, mask=inside, other=0.0)
    if y_ptr is not None:
        y = tl.load(y_ptr + row * stride_y + column, mask=inside, other=0.0)
        x = (x.to(tl.float32) + y.to(x.dtype).to(tl.float32)).to(x.dtype)
        tl.store(x_ptr + row * stride_x + column, x, mask=inside)
    s = x.to(tl.float32)
    if CENTRED:
        s = tl.where(inside, s - (tl.sum(s, axis=1) / width)[:, None], 0.0)
    mean_square = tl.sum(s * s, axis=1) / width
    normed = s * (1.0 / tl.sqrt(mean_square + eps))[:, None]
    normed *= tl.load(weight_ptr + column, mask=real, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        normed += tl.load(bias_ptr + column, mask=real, other=0.0).to(tl.float32)
    target = normed_ptr + row * width + column
    tl.store(target, normed.to(normed_ptr.dtype.element_ty), mask=inside)


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
    each, padded = row_block(width)
    _add_norm[(triton.cdiv(total.shape[0], each),)](
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
        ROWS=each,
        WIDTH=padded,
        num_warps=row_warps(padded),
    )
    return total.view(x.shape), normed
