"""What the attention kernels share: rows of keys folded into an online softmax, block shapes."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def fold_rows(
    total,
    row_sum,
    row_max,
    q,
    low,
    high,
    k_ptr,
    v_ptr,
    stride_k,
    stride_v,
    first,
    last,
    scale,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold keys and values first .. last-1 of one buffer in; query i sees low[i] .. high[i]-1."""
    p = tl.arange(0, WIDTH)
    high = tl.minimum(high, last)
    for start in range(first, last, KEYS):
        row = start + tl.arange(0, KEYS)
        wide = row.to(tl.int64)
        real = row < last
        k = tl.load(
            k_ptr + wide[None, :] * stride_k + p[:, None],
            mask=real[None, :] & (p < P)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k.to(q.dtype), input_precision=PRECISION) * scale
        seen = (row[None, :] >= low[:, None]) & (row[None, :] < high[:, None])
        scores = tl.where(seen, scores, float("-inf"))

        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        # A row that has seen no key yet has -inf for its maximum: keep -inf - -inf out.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(row_max - shift)
        v = tl.load(
            v_ptr + wide[:, None] * stride_v + p[None, :],
            mask=real[:, None] & (p < P)[None, :],
            other=0.0,
        )
        row_sum = row_sum * fade + tl.sum(weights, axis=1)
        total = total * fade[:, None]
        total = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc=total, input_precision=PRECISION)
        row_max = new_max
    return total, row_sum, row_max


def blocks(dtype: torch.dtype, rows: int, width: int) -> tuple[int, int, int, int]:
    """Rows and keys of a block, warps, and stages of the pipeline."""
    if dtype == torch.float32:
        # No tensor cores at full float32 precision: the tile is held down by registers.
        return 16, (32 if width <= 64 else 16), (4 if width <= 64 else 8), 1
    if rows <= 16:
        return 16, 64, 4, (3 if width <= 128 else 2)
    return 64, (64 if width <= 128 else 32), (4 if width <= 128 else 8), 2


def contiguous_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dimension is contiguous, as the kernels need it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
