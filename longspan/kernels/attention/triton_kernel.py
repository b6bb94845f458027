"""Sliding-window attention in Triton: the output (`triton_attend.py`), and the window moved on."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.attention.int8_rows import Rows
from longspan.kernels.attention.triton_attend import attend
from longspan.kernels.attention.triton_int8 import new_rows, planes, rows_like
from longspan.kernels.attention.triton_math import contiguous_rows

# Entries and columns that a program of `_move_window` reads before it writes. 16 columns of
# bfloat16 are 32 bytes, the least that memory gives at once; wide ones are faster where programs
# are many.
MOVE_NARROW = (1024, 16)
MOVE_WIDE = (512, 64)
MOVE_PROGRAMS = 128


@triton.jit
def _move_columns(
    past_ptr,
    new_ptr,
    moved_ptr,
    length,
    entries,
    stride_past,
    stride_new,
    stride_moved,
    inside,
    ENTRIES: tl.constexpr,
):
    """moved[e] = past[e + length], or, beyond its end, new[e + length - entries]."""
    for start in range(0, entries, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        source = entry.to(tl.int64) + length
        stays = (source < entries)[:, None] & inside
        comes = ((source >= entries) & (entry < entries))[:, None] & inside
        past = tl.load(past_ptr + source[:, None] * stride_past, mask=stays, other=0.0)
        new = tl.load(new_ptr + (source - entries)[:, None] * stride_new, mask=comes, other=0.0)
        # `moved` may be `past`: every thread has read before one writes.
        tl.debug_barrier()
        target = moved_ptr + entry.to(tl.int64)[:, None] * stride_moved
        tl.store(target, tl.where(stays, past, new.to(past.dtype)), mask=stays | comes)


@triton.jit(do_not_specialize=["length", "entries"])
def _move_window(
    past_k_ptr,
    past_v_ptr,
    k_ptr,
    v_ptr,
    moved_k_ptr,
    moved_v_ptr,
    length,
    entries,
    stride_past_k_batch,
    stride_past_k,
    stride_past_k_head,
    stride_past_v_batch,
    stride_past_v,
    stride_past_v_head,
    stride_k_batch,
    stride_k,
    stride_k_head,
    stride_v_batch,
    stride_v,
    stride_v_head,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The newest entries of a past followed by the new ones, as many as the past has.

    A program owns columns of all entries of a key head, oldest first: the next window may take the
    place of the past.
    """
    of_values = tl.program_id(0) % 2
    p = (tl.program_id(0) // 2 * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    group = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    moved = (batch * entries * GROUPS + group) * P + p
    if of_values == 0:
        _move_columns(
            past_k_ptr + batch * stride_past_k_batch + group * stride_past_k_head + p,
            k_ptr + batch * stride_k_batch + group * stride_k_head + p,
            moved_k_ptr + moved,
            length,
            entries,
            stride_past_k,
            stride_k,
            GROUPS * P,
            p < P,
            ENTRIES,
        )
    else:
        _move_columns(
            past_v_ptr + batch * stride_past_v_batch + group * stride_past_v_head + p,
            v_ptr + batch * stride_v_batch + group * stride_v_head + p,
            moved_v_ptr + moved,
            length,
            entries,
            stride_past_v,
            stride_v,
            GROUPS * P,
            p < P,
            ENTRIES,
        )


def _move(
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    moved_k: torch.Tensor,
    moved_v: torch.Tensor,
) -> None:
    """Fill the windows [B, W-1, G, P] after the new tokens."""
    batch, entries, groups, width = past_k.shape
    past_k, past_v, k, v = (contiguous_rows(each) for each in (past_k, past_v, k, v))
    most_entries, columns = MOVE_WIDE
    if 2 * triton.cdiv(width, columns) * groups * batch < MOVE_PROGRAMS:
        most_entries, columns = MOVE_NARROW
    _move_window[(2 * triton.cdiv(width, columns), groups, batch)](
        past_k,
        past_v,
        k,
        v,
        moved_k,
        moved_v,
        k.shape[1],
        entries,
        *past_k.stride()[:3],
        *past_v.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        GROUPS=groups,
        P=width,
        ENTRIES=min(most_entries, triton.next_power_of_2(entries)),
        COLUMNS=columns,
        num_warps=8,
        num_stages=1,  # No entry may be fetched ahead of the stores before it.
    )


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: Rows,
    past_v: Rows,
    position: torch.Tensor,
    *,
    window: int,
) -> tuple[torch.Tensor, Rows, Rows]:
    """See `longspan.kernels.attention.window_attention`."""
    new_k, new_v = new_rows(contiguous_rows(k), contiguous_rows(v), past_k, past_v)
    y = attend(q, new_k.used, new_v.used, past_k, past_v, position, windowed=True)
    # The attention before has read the past.
    moved_k, moved_v = (rows_like(past, in_place=True) for past in (past_k, past_v))
    if window > 1:
        rows = (past_k, past_v, new_k.kept, new_v.kept, moved_k, moved_v)
        for tensors in zip(*(planes(each) for each in rows), strict=True):
            _move(*tensors)
    return y, moved_k, moved_v
