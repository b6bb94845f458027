"""The output of anchor attention in Triton: anchors, the open segment, and the tokens since.

Rows are those of `longspan.kernels.attention.triton_attend`: row m of a key head is query m // R of
query head m % R, with R = H / G. With few rows the anchors and the cache's open segment are cut
into splits, which a second launch joins.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.attention.blocks import choose_blocks
from longspan.kernels.attention.int8_rows import Int8Rows, Rows, values_of
from longspan.kernels.attention.scratch import count_splits
from longspan.kernels.attention.triton_int8 import scales_of
from longspan.kernels.attention.triton_math import (
    LOG2_E,
    fold_rows,
    join,
    share,
    split_sums,
    store_rows,
)
from longspan.kernels.device import shared_memory_bytes


@triton.jit(do_not_specialize=["length", "capacity", "splits"])
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    past_k_ptr,
    past_v_ptr,
    new_k_ptr,
    new_v_ptr,
    past_k_scale_ptr,
    past_v_scale_ptr,
    new_k_scale_ptr,
    new_v_scale_ptr,
    is_anchor_ptr,
    before_ptr,
    ends_ptr,
    anchors_ptr,
    entries_ptr,
    y_ptr,
    sum_ptr,
    max_ptr,
    length,
    capacity,
    splits,
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
    stride_new_batch,
    stride_new,
    stride_new_head,
    HEADS: tl.constexpr,
    REPEATS: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    INT8: tl.constexpr,
):
    # The last rows see most anchors: they start first.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    group = (tl.program_id(1) // splits).to(tl.int64)
    split = tl.program_id(1) % splits
    batch = tl.program_id(2).to(tl.int64)
    row = first_row + tl.arange(0, ROWS)
    head = group * REPEATS + row % REPEATS
    # Rows beyond the last query repeat it; they are not stored.
    query = tl.minimum(row // REPEATS, length - 1)
    wide = query.to(tl.int64)
    p = tl.arange(0, WIDTH)
    q_offsets = batch * stride_q_batch + wide * stride_q + head * stride_q_head
    q = tl.load(q_ptr + q_offsets[:, None] + p[None, :], mask=(p < P)[None, :], other=0.0)

    anchors = tl.load(anchors_ptr).to(tl.int32)
    entries = tl.load(entries_ptr).to(tl.int32)
    before = tl.load(before_ptr + query)
    segment_start = tl.load(ends_ptr + before - 1, mask=before > 0, other=-1) + 1
    is_anchor = tl.load(is_anchor_ptr + query).to(tl.int32) != 0
    open_end = tl.where(before == 0, entries, 0)
    zero = tl.zeros_like(query)
    anchors_first, open_first = 0, anchors
    anchors_last = tl.max(tl.where(is_anchor, 0, anchors + before), axis=0)
    open_last = tl.max(open_end, axis=0)
    end = tl.max(query, axis=0) + 1
    if SPLIT:
        anchors_first, anchors_last = share(anchors_first, anchors_last, split, splits, KEYS)
        open_first, open_last = share(open_first, open_last, split, splits, KEYS)
        # The last split takes the new keys.
        end = tl.where(split == splits - 1, end, 0)

    row_max = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([ROWS], dtype=tl.float32)
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    new_base = batch * stride_new_batch + group * stride_new_head
    groups: tl.constexpr = HEADS // REPEATS
    scales = batch * capacity * groups + group
    total, row_sum, row_max = fold_rows(
        total,
        row_sum,
        row_max,
        q,
        zero,
        anchors + before,
        new_k_ptr + new_base,
        new_v_ptr + new_base,
        new_k_scale_ptr + scales,
        new_v_scale_ptr + scales,
        stride_new,
        stride_new,
        groups,
        anchors_first,
        anchors_last,
        0,
        tl.minimum(tl.min(anchors + before, axis=0), anchors_last),
        scale,
        P,
        WIDTH,
        KEYS,
        PRECISION,
        INT8,
    )
    # Anchors see no anchor. To leave out what they folded lets other rows do without a mask.
    total = tl.where(is_anchor[:, None], 0.0, total)
    row_sum = tl.where(is_anchor, 0.0, row_sum)
    row_max = tl.where(is_anchor, float("-inf"), row_max)
    total, row_sum, row_max = fold_rows(
        total,
        row_sum,
        row_max,
        q,
        zero,
        open_end,
        past_k_ptr + batch * stride_past_k_batch + group * stride_past_k_head,
        past_v_ptr + batch * stride_past_v_batch + group * stride_past_v_head,
        past_k_scale_ptr + scales,
        past_v_scale_ptr + scales,
        stride_past_k,
        stride_past_v,
        groups,
        open_first,
        open_last,
        0,
        tl.minimum(tl.min(open_end, axis=0), open_last),
        scale,
        P,
        WIDTH,
        KEYS,
        PRECISION,
        INT8,
    )
    total, row_sum, row_max = fold_rows(
        total,
        row_sum,
        row_max,
        q,
        segment_start,
        query + 1,
        k_ptr + batch * stride_k_batch + group * stride_k_head,
        v_ptr + batch * stride_v_batch + group * stride_v_head,
        None,
        None,
        stride_k,
        stride_v,
        0,
        tl.min(segment_start, axis=0),
        end,
        tl.max(segment_start, axis=0),
        tl.minimum(tl.min(query, axis=0) + 1, end),
        scale,
        P,
        WIDTH,
        KEYS,
        PRECISION,
        False,
    )
    store_rows(
        y_ptr,
        sum_ptr,
        max_ptr,
        total,
        row_sum,
        row_max,
        (batch * length + wide) * HEADS + head,
        row < length * REPEATS,
        split,
        splits,
        P,
        WIDTH,
        SPLIT,
    )


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past: tuple[Rows, Rows],
    cache: tuple[Rows, Rows],
    is_anchor: torch.Tensor,
    counts: tuple[torch.Tensor, torch.Tensor],
    counters: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """The output [B, L, H, P].

    Args:
        q: float [B, L, H, P].
        k: float [B, L, G, P].
        v: float [B, L, G, P].
        past: keys and values [B, C, G, P] before the call.
        cache: keys and values [B, C, G, P], contiguous, that start with all anchors before a
            query, in order.
        is_anchor: bool [L].
        counts: int32 [L] twice: the anchors before each token, and the token of each anchor.
        counters: int64 [1] twice: anchors and entries of the past.
    """
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    repeats = heads // groups
    past_k, past_v, new_k, new_v = (values_of(rows) for rows in (*past, *cache))
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    padded = max(16, triton.next_power_of_2(width))
    blocks = choose_blocks(q.dtype, length * repeats, padded, shared_memory_bytes(q.device))
    row_blocks = triton.cdiv(length * repeats, blocks.rows)
    splits = count_splits(row_blocks * groups * batch, blocks.rows, past_k.shape[1])
    parts = split_sums(y, splits)
    _attend[(row_blocks, groups * splits, batch)](
        q,
        k,
        v,
        past_k,
        past_v,
        new_k,
        new_v,
        *scales_of(*past, *cache),
        is_anchor,
        *counts,
        *counters,
        *parts,
        length,
        past_k.shape[1],
        splits,
        LOG2_E / width**0.5,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *past_k.stride()[:3],
        *past_v.stride()[:3],
        *new_k.stride()[:3],
        HEADS=heads,
        REPEATS=repeats,
        P=width,
        WIDTH=padded,
        ROWS=blocks.rows,
        KEYS=blocks.keys,
        SPLIT=splits > 1,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        INT8=isinstance(past[0], Int8Rows),
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        maxnreg=blocks.registers,
    )
    if splits > 1:
        join(parts, y, splits)
    return y
