"""Sliding-window attention in Triton: online softmax over the past's keys, then the new ones.

A program owns a block of rows of one key head; row m is query m // R of query head m % R, with
R = H / G query heads to a key head, so a key is read once for all of them. The past's keys and the
new ones stay in their two buffers; each has its own loop. Where the past was given away, a second
launch moves its entries on by one token.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.attention.triton_math import LOG2_E, blocks, contiguous_rows, fold_rows
from longspan.kernels.donation import is_donated

# 16 bf16 channels are a sector of a cache line. Few channels make many programs, each of which
# walks all entries; 512 entries of them are 32 values a thread.
PUSH_CHANNELS = 16
PUSH_ENTRIES = 512


@triton.jit(do_not_specialize=["length", "window"])
def _window_attention(
    q_ptr,
    k_ptr,
    v_ptr,
    past_k_ptr,
    past_v_ptr,
    position_ptr,
    y_ptr,
    length,
    window,
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
    PRECISION: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    group = tl.program_id(1).to(tl.int64)
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

    past = window - 1
    first_query = first_row // REPEATS
    last_query = tl.minimum((first_row + ROWS - 1) // REPEATS, length - 1)
    # Of the past only the last `position` entries were ever written.
    read = tl.minimum(tl.load(position_ptr), past.to(tl.int64)).to(tl.int32)
    total, row_sum, row_max = fold_rows(
        total,
        row_sum,
        row_max,
        q,
        query,
        query + window,
        past_k_ptr + batch * stride_past_k_batch + group * stride_past_k_head,
        past_v_ptr + batch * stride_past_v_batch + group * stride_past_v_head,
        stride_past_k,
        stride_past_v,
        tl.maximum(first_query, past - read),
        past,
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
        query - past,
        query + 1,
        k_ptr + batch * stride_k_batch + group * stride_k_head,
        v_ptr + batch * stride_v_batch + group * stride_v_head,
        stride_k,
        stride_v,
        tl.maximum(first_query - past, 0),
        last_query + 1,
        scale,
        P,
        WIDTH,
        KEYS,
        PRECISION,
    )
    # Rows beyond the last query saw nothing; they are not stored.
    y = total / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    y_offsets = (batch * length + query) * HEADS + head
    tl.store(y_ptr + y_offsets[:, None] * P + p[None, :], y.to(y_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["entries"])
def _push(
    past_k_ptr,
    past_v_ptr,
    k_ptr,
    v_ptr,
    entries,
    stride_k_batch,
    stride_k_head,
    stride_v_batch,
    stride_v_head,
    ALL: tl.constexpr,
    P: tl.constexpr,
    CHANNELS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Move every entry of a few channels to the place before it, and put the new one last."""
    channel = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    real = channel < ALL
    if tl.program_id(1) == 0:
        past_ptr = past_k_ptr
        new_ptr = k_ptr + batch * stride_k_batch + channel // P * stride_k_head
    else:
        past_ptr = past_v_ptr
        new_ptr = v_ptr + batch * stride_v_batch + channel // P * stride_v_head
    past_ptr += batch * entries * ALL + channel[None, :]
    for start in range(0, entries - 1, ENTRIES):
        entry = (start + tl.arange(0, ENTRIES))[:, None]
        inside = (entry < entries - 1) & real[None, :]
        place = past_ptr + entry.to(tl.int64) * ALL
        following = tl.load(place + ALL, mask=inside, other=0.0)
        # No warp stores where another has yet to load, in this block of entries or the last.
        tl.debug_barrier()
        tl.store(place, following, mask=inside)
    new = tl.load(new_ptr + channel % P, mask=real, other=0.0)
    tl.debug_barrier()
    last = past_ptr + (entries - 1).to(tl.int64) * ALL
    tl.store(last, new.to(past_ptr.dtype.element_ty)[None, :], mask=real[None, :])


def _push_(
    past_k: torch.Tensor, past_v: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The newest entries of the past followed by one token, where the past lies."""
    batch, entries, groups, width = past_k.shape
    if entries:
        _push[(triton.cdiv(groups * width, PUSH_CHANNELS), 2, batch)](
            past_k,
            past_v,
            k,
            v,
            entries,
            k.stride(0),
            k.stride(2),
            v.stride(0),
            v.stride(2),
            ALL=groups * width,
            P=width,
            CHANNELS=PUSH_CHANNELS,
            ENTRIES=PUSH_ENTRIES,
            num_warps=8,
            # Entries must not be fetched ahead of the stores before them.
            num_stages=1,
        )
    return past_k, past_v


def _last_entries(past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The newest entries of `past` followed by `new`, as many as `past` has, in new memory."""
    entries, length = past.shape[1], new.shape[1]
    if length >= entries:
        last = new[:, length - entries :]
        return last.to(past.dtype, copy=True, memory_format=torch.contiguous_format)
    return torch.cat([past[:, length:].to(new.dtype), new], dim=1).to(past.dtype)


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    position: torch.Tensor,
    *,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.attention.window_attention`."""
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    repeats = heads // groups
    q, k, v, past_k, past_v = (contiguous_rows(each) for each in (q, k, v, past_k, past_v))
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    padded = max(16, triton.next_power_of_2(width))
    rows, keys, warps, stages = blocks(q.dtype, length * repeats, padded)
    _window_attention[(triton.cdiv(length * repeats, rows), groups, batch)](
        q,
        k,
        v,
        past_k,
        past_v,
        position,
        y,
        length,
        window,
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
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=warps,
        num_stages=stages,
    )
    if length == 1 and is_donated(past_k, past_v):
        return y, *_push_(past_k, past_v, k, v)
    return y, _last_entries(past_k, k), _last_entries(past_v, v)
