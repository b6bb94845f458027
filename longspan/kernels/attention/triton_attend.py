"""Attention over keys in a past and new keys after them in Triton: a window's, or all of them.

A program owns a block of rows of one key head; row m is query m // R of query head m % R, with
R = H / G query heads to a key head, so a key is read once for all of them. The past's keys and the
new ones stay in their two buffers, each folded by itself. With few rows the past is cut into splits
(`scratch.py`); each leaves its sums, which a second launch joins.
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
    contiguous_rows,
    fold_rows,
    join,
    share,
    split_sums,
    store_rows,
)
from longspan.kernels.device import shared_memory_bytes


@triton.jit(do_not_specialize=["length", "entries", "splits"])
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    past_k_ptr,
    past_v_ptr,
    past_k_scale_ptr,
    past_v_scale_ptr,
    position_ptr,
    y_ptr,
    sum_ptr,
    max_ptr,
    length,
    entries,
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
    HEADS: tl.constexpr,
    REPEATS: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    INT8: tl.constexpr,
):
    # The last rows see most keys: they start first.
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

    first_query = first_row // REPEATS
    last_query = tl.minimum((first_row + ROWS - 1) // REPEATS, length - 1)
    position = tl.load(position_ptr)
    none = tl.zeros_like(query)
    if WINDOWED:
        # A window's past ends with the last token: of a short one, the first entries are unwritten.
        used = tl.minimum(position, entries.to(tl.int64)).to(tl.int32)
        first, last = tl.maximum(first_query, entries - used), entries
        low_past, all_past = query, last_query
        low, all_first = query - entries, tl.maximum(last_query - entries, 0)
        start = tl.maximum(first_query - entries, 0)
    else:
        first, last = 0, position.to(tl.int32)
        low_past, all_past = none, 0
        low, all_first, start = none, 0, 0
    end = last_query + 1
    if SPLIT:
        first, last = share(first, last, split, splits, KEYS)
        # The first split takes the new keys.
        end = tl.where(split == 0, end, 0)
    row_max = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([ROWS], dtype=tl.float32)
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    groups: tl.constexpr = HEADS // REPEATS
    past_scales = batch * entries * groups + group
    total, row_sum, row_max = fold_rows(
        total,
        row_sum,
        row_max,
        q,
        low_past,
        none + last,
        past_k_ptr + batch * stride_past_k_batch + group * stride_past_k_head,
        past_v_ptr + batch * stride_past_v_batch + group * stride_past_v_head,
        past_k_scale_ptr + past_scales,
        past_v_scale_ptr + past_scales,
        stride_past_k,
        stride_past_v,
        groups,
        first,
        last,
        all_past,
        last,
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
        low,
        query + 1,
        k_ptr + batch * stride_k_batch + group * stride_k_head,
        v_ptr + batch * stride_v_batch + group * stride_v_head,
        None,
        None,
        stride_k,
        stride_v,
        0,
        start,
        end,
        all_first,
        tl.minimum(first_query + 1, end),
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
    past_k: Rows,
    past_v: Rows,
    position: torch.Tensor,
    *,
    windowed: bool,
) -> torch.Tensor:
    """The output [B, L, H, P] of tokens that see the past in use and the new tokens up to theirs.

    Args:
        q: float [B, L, H, P].
        k: dtype of `q` [B, L, G, P].
        v: dtype of `q` [B, L, G, P].
        past_k: rows [B, C, G, P]; of a window the last `position` entries are in use, oldest
            first, and a token sees C before it; otherwise the first `position`, which all see.
        past_v: rows [B, C, G, P], in int8 if `past_k` is.
        position: int64 [1].
        windowed: whether the past is a window's.
    """
    batch, length, heads, width = q.shape
    k_values, v_values = contiguous_rows(values_of(past_k)), contiguous_rows(values_of(past_v))
    groups, entries = k_values.shape[2], k_values.shape[1]
    repeats = heads // groups
    q, k, v = (contiguous_rows(each) for each in (q, k, v))
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    padded = max(16, triton.next_power_of_2(width))
    blocks = choose_blocks(q.dtype, length * repeats, padded, shared_memory_bytes(q.device))
    row_blocks = triton.cdiv(length * repeats, blocks.rows)
    splits = count_splits(row_blocks * groups * batch, blocks.rows, entries)
    parts = split_sums(y, splits)
    _attend[(row_blocks, groups * splits, batch)](
        q,
        k,
        v,
        k_values,
        v_values,
        *scales_of(past_k, past_v),
        position,
        *parts,
        length,
        entries,
        splits,
        LOG2_E / width**0.5,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *k_values.stride()[:3],
        *v_values.stride()[:3],
        HEADS=heads,
        REPEATS=repeats,
        P=width,
        WIDTH=padded,
        ROWS=blocks.rows,
        KEYS=blocks.keys,
        WINDOWED=windowed,
        SPLIT=splits > 1,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        INT8=isinstance(past_k, Int8Rows),
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        maxnreg=blocks.registers,
    )
    if splits > 1:
        join(parts, y, splits)
    return y
