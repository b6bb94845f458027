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
from longspan.kernels.attention.triton_math import LOG2_E, blocks, contiguous_rows, fold_rows
from longspan.kernels.donation import is_donated, new_like

Counters = tuple[torch.Tensor, torch.Tensor]
Cache = tuple[torch.Tensor, torch.Tensor]
COUNT_TOKENS = 2048  # flags that `count_anchors` loads at once
KEEP_ROWS = 32  # entries that a program of `keep_entries` writes


@triton.jit(do_not_specialize=["length"])
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
    stride_new_batch,
    stride_new,
    stride_new_head,
    HEADS: tl.constexpr,
    REPEATS: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    group = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = group * REPEATS + row % REPEATS
    # Rows beyond the last query repeat it; they are not stored.
    query = tl.minimum(row // REPEATS, length - 1)
    wide = query.to(tl.int64)
    p = tl.arange(0, WIDTH)
    inside = (p < P)[None, :]
    q_offsets = batch * stride_q_batch + wide * stride_q + head * stride_q_head
    q = tl.load(q_ptr + q_offsets[:, None] + p[None, :], mask=inside, other=0.0)

    anchors = tl.load(anchors_ptr).to(tl.int32)
    entries = tl.load(entries_ptr).to(tl.int32)
    before = tl.load(before_ptr + query)
    segment_start = tl.load(ends_ptr + before - 1, mask=before > 0, other=-1) + 1
    is_anchor = tl.load(is_anchor_ptr + query).to(tl.int32) != 0
    anchors_seen = tl.where(is_anchor, 0, anchors + before)
    open_end = tl.where(before == 0, entries, 0)
    zero = tl.zeros_like(query)

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
        anchors_seen,
        new_k_ptr + new_base,
        new_v_ptr + new_base,
        stride_new,
        stride_new,
        0,
        tl.max(anchors_seen, axis=0),
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
        zero,
        open_end,
        past_k_ptr + batch * stride_past_k_batch + group * stride_past_k_head,
        past_v_ptr + batch * stride_past_v_batch + group * stride_past_v_head,
        stride_past_k,
        stride_past_v,
        anchors,
        tl.max(open_end, axis=0),
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
        tl.max(query, axis=0) + 1,
        scale,
        P,
        WIDTH,
        KEYS,
        PRECISION,
    )
    y = total / row_sum[:, None]
    y_offsets = ((batch * length + wide) * HEADS + head) * P
    real = (row < length * REPEATS)[:, None] & inside
    tl.store(y_ptr + y_offsets[:, None] + p[None, :], y.to(y_ptr.dtype.element_ty), mask=real)


def _count(
    anchors: torch.Tensor, entries: torch.Tensor, is_anchor: torch.Tensor
) -> tuple[Counters, Counters]:
    """Anchors before each token and the token of each anchor; the new counters."""
    length, device = is_anchor.shape[0], is_anchor.device
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
    return (before, ends), (new_anchors, new_entries)


def _keep(
    k: torch.Tensor,
    v: torch.Tensor,
    past: Cache,
    cache: Cache,
    ends: torch.Tensor,
    counters: Counters,
    new_counters: Counters,
) -> None:
    """Fill the new cache, which is the past itself where that was given away."""
    (past_k, past_v), (new_k, new_v) = past, cache
    batch, length, groups, width = k.shape
    capacity, in_place = past_k.shape[1], new_k is past_k
    keep_entries[(triton.cdiv(length if in_place else capacity, KEEP_ROWS), groups, batch)](
        k,
        v,
        past_k,
        past_v,
        new_k,
        new_v,
        ends,
        *counters,
        *new_counters,
        capacity,
        *k.stride()[:3],
        *v.stride()[:3],
        *past_k.stride()[:3],
        *past_v.stride()[:3],
        G=groups,
        P=width,
        WIDTH=triton.next_power_of_2(width),
        ROWS=KEEP_ROWS,
        IN_PLACE=in_place,
    )


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
    (before, ends), new_counters = _count(anchors, entries, is_anchor)
    in_place = length == 1 and is_donated(past_k, past_v)
    new_k = new_like(past_k, in_place=in_place)
    new_v = new_like(past_v, in_place=in_place)

    def keep() -> None:
        _keep(k, v, (past_k, past_v), (new_k, new_v), ends, (anchors, entries), new_counters)

    # Queries read the call's anchors from the new cache, and a segment that they close from the
    # old. One token reads old anchors alone: its entry may come after, over that segment.
    if not in_place:
        keep()
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    padded = max(16, triton.next_power_of_2(width))
    rows, keys, warps, stages = blocks(q.dtype, length * repeats, padded)
    _attend[(triton.cdiv(length * repeats, rows), groups, batch)](
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
        y,
        length,
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
        ROWS=rows,
        KEYS=keys,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=warps,
        num_stages=stages,
    )
    if in_place:
        keep()
    return y, new_k, new_v, *new_counters
