"""Attention over a cache in Triton: online softmax over the entries in use, then the new ones.

Programs, rows and blocks are those of window attention (`longspan.kernels.attention`). With few
rows the past is cut into splits (`scratch.py`); each leaves its sums, and `_join` adds them up.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.attention.triton_math import LOG2_E, blocks, contiguous_rows, fold_rows
from longspan.kernels.donation import new_like
from longspan.kernels.full_attention.scratch import count_splits

COPY_VALUES = 4096


@triton.jit(do_not_specialize=["length"])
def _full_attention(
    q_ptr,
    k_ptr,
    v_ptr,
    past_k_ptr,
    past_v_ptr,
    position_ptr,
    y_ptr,
    sum_ptr,
    max_ptr,
    length,
    scale,
    stride_q_batch,
    stride_q,
    stride_q_head,
    stride_k_batch,
    stride_k,
    stride_k_head,
    stride_v_batch,
    stride_v,
    stride_v_head,
    stride_past_k_batch,
    stride_past_k,
    stride_past_k_head,
    stride_past_v_batch,
    stride_past_v,
    stride_past_v_head,
    HEADS: tl.constexpr,
    REPEATS: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    group = (tl.program_id(1) // SPLITS).to(tl.int64)
    split = tl.program_id(1) % SPLITS
    batch = tl.program_id(2).to(tl.int64)
    row = first_row + tl.arange(0, ROWS)
    query = row // REPEATS
    head = group * REPEATS + row % REPEATS
    p = tl.arange(0, WIDTH)
    real = (query < length)[:, None] & (p < P)[None, :]

    q_offsets = query.to(tl.int64) * stride_q + head * stride_q_head
    q = tl.load(
        q_ptr + batch * stride_q_batch + q_offsets[:, None] + p[None, :], mask=real, other=0.0
    )
    row_max = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([ROWS], dtype=tl.float32)
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)

    used = tl.load(position_ptr).to(tl.int32)
    span = tl.cdiv(tl.cdiv(used, SPLITS), KEYS) * KEYS
    first = split * span
    last = tl.minimum(first + span, used)
    none = tl.zeros([ROWS], dtype=tl.int32)
    total, row_sum, row_max = fold_rows(
        total,
        row_sum,
        row_max,
        q,
        none,
        none + last,
        past_k_ptr + batch * stride_past_k_batch + group * stride_past_k_head,
        past_v_ptr + batch * stride_past_v_batch + group * stride_past_v_head,
        stride_past_k,
        stride_past_v,
        first,
        last,
        scale,
        P,
        WIDTH,
        KEYS,
        PRECISION,
    )
    last_query = tl.minimum((first_row + ROWS - 1) // REPEATS, length - 1)
    total, row_sum, row_max = fold_rows(
        total,
        row_sum,
        row_max,
        q,
        none,
        query + 1,
        k_ptr + batch * stride_k_batch + group * stride_k_head,
        v_ptr + batch * stride_v_batch + group * stride_v_head,
        stride_k,
        stride_v,
        0,
        # The first split takes the new keys.
        tl.where(split == 0, last_query + 1, 0),
        scale,
        P,
        WIDTH,
        KEYS,
        PRECISION,
    )
    places = (batch * length + query) * HEADS + head
    if SPLITS == 1:
        # Rows beyond the last query are not stored.
        y = total / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
        y_offsets = places[:, None] * P + p[None, :]
        tl.store(y_ptr + y_offsets, y.to(y_ptr.dtype.element_ty), mask=real)
    else:
        places = places * SPLITS + split
        tl.store(y_ptr + places[:, None] * P + p[None, :], total, mask=real)
        tl.store(sum_ptr + places, row_sum, mask=query < length)
        tl.store(max_ptr + places, row_max, mask=query < length)


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
    """One row's output from the sums of its splits; the first of them saw a key."""
    place = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, WIDTH)
    split = place * SPLITS + tl.arange(0, SPLITS)
    row_max = tl.load(max_ptr + split)
    weight = tl.exp2(row_max - tl.max(row_max, axis=0))
    parts = tl.load(part_ptr + split[:, None] * P + p[None, :], mask=(p < P)[None, :], other=0.0)
    total = tl.sum(parts * weight[:, None], axis=0)
    y = total / tl.sum(tl.load(sum_ptr + split) * weight, axis=0)
    tl.store(y_ptr + place * P + p, y.to(y_ptr.dtype.element_ty), mask=p < P)


@triton.jit(do_not_specialize=["length", "capacity"])
def _append(
    past_ptr,
    new_ptr,
    cache_ptr,
    position_ptr,
    length,
    capacity,
    stride_past_batch,
    stride_past,
    stride_past_head,
    stride_new_batch,
    stride_new,
    stride_new_head,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    ENTRIES: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    """Copy the entries in use, and the new ones after them; the rest stays unwritten.

    Where the cache is the past itself, only the new ones are written.
    """
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    group = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    p = tl.arange(0, WIDTH)[None, :]
    used = tl.load(position_ptr)
    if IN_PLACE:
        entry += used
    # What does not fit is not written: beyond the cache lies another tensor.
    old = (entry < used)[:, None] & (entry < capacity)[:, None] & (p < P)
    fresh = (entry >= used)[:, None] & (entry < tl.minimum(used + length, capacity))[:, None]
    fresh = fresh & (p < P)
    past = past_ptr + batch * stride_past_batch + group * stride_past_head
    new = new_ptr + batch * stride_new_batch + group * stride_new_head
    added = tl.load(new + (entry - used)[:, None] * stride_new + p, mask=fresh, other=0.0)
    places = ((batch * capacity + entry) * GROUPS + group)[:, None] * P + p
    if IN_PLACE:
        tl.store(cache_ptr + places, added.to(cache_ptr.dtype.element_ty), mask=fresh)
    else:
        kept = tl.load(past + entry[:, None] * stride_past + p, mask=old, other=0.0)
        value = tl.where(old, kept, added.to(kept.dtype))
        tl.store(cache_ptr + places, value, mask=old | fresh)


def _appended(past: torch.Tensor, new: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    batch, capacity, groups, width = past.shape
    # The attention before has read the past.
    cache = new_like(past, in_place=True)
    in_place = cache is past
    padded = triton.next_power_of_2(width)
    entries = max(1, COPY_VALUES // padded)
    _append[(triton.cdiv(new.shape[1] if in_place else capacity, entries), groups, batch)](
        past,
        new,
        cache,
        position,
        new.shape[1],
        capacity,
        *past.stride()[:3],
        *new.stride()[:3],
        GROUPS=groups,
        P=width,
        WIDTH=padded,
        ENTRIES=entries,
        IN_PLACE=in_place,
        num_warps=4,
    )
    return cache


def full_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.full_attention.full_attention`."""
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    repeats = heads // groups
    q, k, v, past_k, past_v = (contiguous_rows(each) for each in (q, k, v, past_k, past_v))
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    padded = max(16, triton.next_power_of_2(width))
    rows, keys, warps, stages = blocks(q.dtype, length * repeats, padded)
    row_blocks = triton.cdiv(length * repeats, rows)
    splits = count_splits(row_blocks * groups * batch, past_k.shape[1])
    parts, sums, maxima = (y, y, y) if splits == 1 else _scratch(q, splits)
    _full_attention[(row_blocks, groups * splits, batch)](
        q,
        k,
        v,
        past_k,
        past_v,
        position,
        parts,
        sums,
        maxima,
        length,
        LOG2_E / width**0.5,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *past_k.stride()[:3],
        *past_v.stride()[:3],
        HEADS=heads,
        REPEATS=repeats,
        P=width,
        WIDTH=padded,
        ROWS=rows,
        KEYS=keys,
        SPLITS=splits,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=warps,
        num_stages=stages,
    )
    if splits > 1:
        _join[(batch * length * heads,)](
            parts, sums, maxima, y, P=width, WIDTH=padded, SPLITS=splits, num_warps=4
        )
    return y, _appended(past_k, k, position), _appended(past_v, v, position)


def _scratch(q: torch.Tensor, splits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums of values [B, L, H, S, P], sums of weights and maxima [B, L, H, S], in float32."""
    batch, length, heads, width = q.shape
    shape = (batch, length, heads, splits)
    parts = torch.empty((*shape, width), dtype=torch.float32, device=q.device)
    sums = torch.empty(shape, dtype=torch.float32, device=q.device)
    return parts, sums, torch.empty(shape, dtype=torch.float32, device=q.device)
