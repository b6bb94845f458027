"""Anchor attention in Triton: three launches, no synchronisation, no matrix of L x L.

1. `count_anchors` walks the flags: anchors before each token, where each anchor stands, the new
   counters.
2. `keep_entries` fills the new cache, whose first entries are all anchors, old and new, in order.
3. `_attend` folds, for a block of queries, the anchors at the start of the new cache; the old
   cache's open segment, if a query still belongs to it; and the new tokens from the start of the
   first query's segment. A token costs its segment and the anchors before it.

Rows are those of `longspan.kernels.attention.triton_kernel`: row m of a key head is query m // R of
query head m % R, with R = H / G.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.anchor_attention.triton_cache import count_anchors, keep_entries
from longspan.kernels.attention.blocks import choose_blocks
from longspan.kernels.attention.scratch import count_splits
from longspan.kernels.attention.triton_math import (
    LOG2_E,
    contiguous_rows,
    fold_rows,
    join,
    share,
    split_sums,
    store_rows,
)
from longspan.kernels.device import shared_memory_bytes

COUNT_TOKENS = 2048  # flags that `count_anchors` loads at once
KEEP_ROWS = 32  # entries that a program of `keep_entries` writes


@triton.jit(do_not_specialize=["length", "splits"])
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    past_k_ptr,
    past_v_ptr,
    new_k_ptr,
    new_v_ptr,
    is_anchor_ptr,
    before_ptr,
    ends_ptr,
    anchors_ptr,
    entries_ptr,
    y_ptr,
    sum_ptr,
    max_ptr,
    length,
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
    total, row_sum, row_max = fold_rows(
        total,
        row_sum,
        row_max,
        q,
        zero,
        anchors + before,
        new_k_ptr + new_base,
        new_v_ptr + new_base,
        stride_new,
        stride_new,
        anchors_first,
        anchors_last,
        0,
        tl.minimum(tl.min(anchors + before, axis=0), anchors_last),
        scale,
        P,
        WIDTH,
        KEYS,
        PRECISION,
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
        stride_past_k,
        stride_past_v,
        open_first,
        open_last,
        0,
        tl.minimum(tl.min(open_end, axis=0), open_last),
        scale,
        P,
        WIDTH,
        KEYS,
        PRECISION,
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
        stride_k,
        stride_v,
        tl.min(segment_start, axis=0),
        end,
        tl.max(segment_start, axis=0),
        tl.minimum(tl.min(query, axis=0) + 1, end),
        scale,
        P,
        WIDTH,
        KEYS,
        PRECISION,
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


def _next_cache(
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    anchors: torch.Tensor,
    entries: torch.Tensor,
    is_anchor: torch.Tensor,
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
    """The first two launches: the new cache and counters, and the counts by token and anchor."""
    batch, length, groups, width = k.shape
    capacity, device = past_k.shape[1], k.device
    new_k, new_v = (
        torch.empty(past.shape, dtype=past.dtype, device=device) for past in (past_k, past_v)
    )
    before, ends = (torch.empty(length, dtype=torch.int32, device=device) for _ in range(2))
    new_anchors, new_entries = torch.empty_like(anchors), torch.empty_like(entries)
    count_anchors[(1,)](
        is_anchor,
        anchors,
        entries,
        before,
        ends,
        new_anchors,
        new_entries,
        length,
        TOKENS=COUNT_TOKENS,
        num_warps=8,
    )
    keep_entries[(triton.cdiv(capacity, KEEP_ROWS), groups, batch)](
        k,
        v,
        past_k,
        past_v,
        new_k,
        new_v,
        ends,
        anchors,
        entries,
        new_anchors,
        new_entries,
        capacity,
        *k.stride()[:3],
        *v.stride()[:3],
        *past_k.stride()[:3],
        *past_v.stride()[:3],
        G=groups,
        P=width,
        WIDTH=triton.next_power_of_2(width),
        ROWS=KEEP_ROWS,
    )
    return (new_k, new_v, new_anchors, new_entries), before, ends


def anchor_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    anchors: torch.Tensor,
    entries: torch.Tensor,
    is_anchor: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """See `longspan.kernels.anchor_attention.anchor_attention`."""
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    repeats = heads // groups
    k, v, is_anchor = k.to(past_k.dtype), v.to(past_v.dtype), is_anchor.contiguous()
    q, k, v, past_k, past_v = (contiguous_rows(each) for each in (q, k, v, past_k, past_v))
    cache, before, ends = _next_cache(k, v, past_k, past_v, anchors, entries, is_anchor)
    new_k, new_v, *_ = cache
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
        is_anchor,
        before,
        ends,
        anchors,
        entries,
        *parts,
        length,
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
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        maxnreg=blocks.registers,
    )
    if splits > 1:
        join(parts, y, splits)
    return y, *cache
