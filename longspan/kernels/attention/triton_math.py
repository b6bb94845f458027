"""What the attention kernels share: rows of keys folded into an online softmax.

Maxima are kept as exponents of two, scaled: of a score s they hold s / sqrt(P) * log2(e), so that
a weight is exp2 of one multiplication and subtraction, and queries stay as they were loaded.

Rows in int8 (`int8_rows.py`) go into the products as the integers that they are, which every float
dtype holds. A key's scale multiplies its column of scores, a value's its column of weights.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.attention.int8_rows import LEVELS

LOG2_E = 1.4426950408889634
STEP = tl.constexpr(1 / LEVELS)  # of an int8 row, as a part of its scale


@triton.jit
def _load(ptr, real, inside, EDGE: tl.constexpr, NARROW: tl.constexpr):
    """The tile at `ptr`, masked only where rows or columns may lie outside."""
    if EDGE and NARROW:
        tile = tl.load(ptr, mask=real & inside, other=0.0)
    elif EDGE:
        tile = tl.load(ptr, mask=real, other=0.0)
    elif NARROW:
        tile = tl.load(ptr, mask=inside, other=0.0)
    else:
        tile = tl.load(ptr)
    return tile


@triton.jit
def _load_scales(ptr, stride, start, key, real, EDGE: tl.constexpr):
    """The int8 rows' steps, float32 [KEYS]."""
    scales = ptr + tl.cast(start, tl.int64) * stride + key * stride
    loaded = tl.load(scales, mask=real, other=0.0) if EDGE else tl.load(scales)
    return loaded.to(tl.float32) * STEP


@triton.jit
def _fold_block(
    total,
    row_sum,
    row_max,
    q,
    low,
    high,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    stride_k,
    stride_v,
    stride_scale,
    start,
    last,
    scale,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    INT8: tl.constexpr,
    EDGE: tl.constexpr,
):
    """Fold keys start .. start+KEYS-1 in; at an edge, those before `last` that a row sees."""
    p = tl.arange(0, WIDTH)
    inside = p < P
    key = tl.arange(0, KEYS)
    real = start + key < last
    k_block = k_ptr + tl.cast(start, tl.int64) * stride_k
    v_block = v_ptr + tl.cast(start, tl.int64) * stride_v
    k_tile = k_block + key[None, :] * stride_k + p[:, None]
    k = _load(k_tile, real[None, :], inside[:, None], EDGE, P < WIDTH)
    scores = tl.dot(q, k.to(q.dtype), input_precision=PRECISION)
    if INT8:
        scores *= _load_scales(k_scale_ptr, stride_scale, start, key, real, EDGE)[None, :]
    if EDGE:
        seen = (start + key >= low[:, None]) & (start + key < high[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, axis=1) * scale)
    shift = new_max
    if EDGE:
        # A row that has seen no key yet has -inf for its maximum: keep -inf - -inf out.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.exp2(scores * scale - shift[:, None])
    fade = tl.exp2(row_max - shift)
    v_tile = v_block + key[:, None] * stride_v + p[None, :]
    v = _load(v_tile, real[:, None], inside[None, :], EDGE, P < WIDTH)
    row_sum = row_sum * fade + tl.sum(weights, axis=1)
    if INT8:
        weights *= _load_scales(v_scale_ptr, stride_scale, start, key, real, EDGE)[None, :]
    total = total * fade[:, None]
    total = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc=total, input_precision=PRECISION)
    return total, row_sum, new_max


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
    k_scale_ptr,
    v_scale_ptr,
    stride_k,
    stride_v,
    stride_scale,
    first,
    last,
    all_first,
    all_last,
    scale,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    INT8: tl.constexpr,
):
    """Fold keys and values first .. last-1 of one buffer in; row i sees low[i] .. high[i]-1.

    Every row sees all_first .. all_last-1, where there are such keys: blocks that lie between are
    folded without a mask, after those at both edges. With INT8 the scales of the rows' entries lie
    `stride_scale` apart; without it there are none.
    """
    high = tl.minimum(high, last)
    blocks = tl.cdiv(tl.maximum(last - first, 0), KEYS)
    lower = tl.minimum(tl.cdiv(tl.maximum(all_first - first, 0), KEYS), blocks)
    middle_first = first + lower * KEYS
    middle_last = middle_first + tl.maximum(all_last - middle_first, 0) // KEYS * KEYS
    upper = tl.cdiv(tl.maximum(last - middle_last, 0), KEYS)
    for block in range(lower + upper):
        start = tl.where(block < lower, first + block * KEYS, middle_last + (block - lower) * KEYS)
        total, row_sum, row_max = _fold_block(
            total,
            row_sum,
            row_max,
            q,
            low,
            high,
            k_ptr,
            v_ptr,
            k_scale_ptr,
            v_scale_ptr,
            stride_k,
            stride_v,
            stride_scale,
            start,
            last,
            scale,
            P,
            WIDTH,
            KEYS,
            PRECISION,
            INT8,
            EDGE=True,
        )
    for start in range(middle_first, middle_last, KEYS):
        total, row_sum, row_max = _fold_block(
            total,
            row_sum,
            row_max,
            q,
            low,
            high,
            k_ptr,
            v_ptr,
            k_scale_ptr,
            v_scale_ptr,
            stride_k,
            stride_v,
            stride_scale,
            start,
            last,
            scale,
            P,
            WIDTH,
            KEYS,
            PRECISION,
            INT8,
            EDGE=False,
        )
    return total, row_sum, row_max


@triton.jit
def share(first, last, split, splits, KEYS: tl.constexpr):
    """The part of keys first .. last-1 that is a split's, in whole blocks but the last."""
    span = tl.cdiv(tl.cdiv(tl.maximum(last - first, 0), splits), KEYS) * KEYS
    start = first + split * span
    return start, tl.minimum(start + span, last)


@triton.jit
def store_rows(
    y_ptr,
    sum_ptr,
    max_ptr,
    total,
    row_sum,
    row_max,
    places,
    stored,
    split,
    splits,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Write outputs [.., P] at `places`; of one split among several its sums and maxima."""
    p = tl.arange(0, WIDTH)
    real = stored[:, None] & (p < P)[None, :]
    if SPLIT:
        places = places * splits + split
        tl.store(y_ptr + places[:, None] * P + p[None, :], total, mask=real)
        tl.store(sum_ptr + places, row_sum, mask=stored)
        tl.store(max_ptr + places, row_max, mask=stored)
    else:
        y = (total / row_sum[:, None]).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + places[:, None] * P + p[None, :], y, mask=real)


@triton.jit
def _join(
    part_ptr,
    sum_ptr,
    max_ptr,
    y_ptr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One row's output from the sums of its splits; one of them saw a key."""
    place = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, WIDTH)
    split = place * SPLITS + tl.arange(0, SPLITS)
    row_max = tl.load(max_ptr + split)
    weight = tl.exp2(row_max - tl.max(row_max, axis=0))
    parts = tl.load(part_ptr + split[:, None] * P + p[None, :], mask=(p < P)[None, :], other=0.0)
    total = tl.sum(parts * weight[:, None], axis=0)
    y = total / tl.sum(tl.load(sum_ptr + split) * weight, axis=0)
    tl.store(y_ptr + place * P + p, y.to(y_ptr.dtype.element_ty), mask=p < P)


def join(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor], y: torch.Tensor, splits: int
) -> None:
    """Write y [B, L, H, P] from what `split_sums` holds."""
    *rows, width = y.shape
    padded = triton.next_power_of_2(width)
    programs = (rows[0] * rows[1] * rows[2],)
    _join[programs](*parts, y, P=width, WIDTH=padded, SPLITS=splits, num_warps=4)


def split_sums(y: torch.Tensor, splits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums of values [B, L, H, S, P], sums of weights and maxima [B, L, H, S], in float32.

    With one split there is nothing to join: the output takes the place of all three.
    """
    if splits == 1:
        return y, y, y
    batch, length, heads, width = y.shape
    shape = (batch, length, heads, splits)
    parts = torch.empty((*shape, width), dtype=torch.float32, device=y.device)
    sums = torch.empty(shape, dtype=torch.float32, device=y.device)
    return parts, sums, torch.empty(shape, dtype=torch.float32, device=y.device)


def contiguous_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dimension is contiguous, as the kernels need it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
