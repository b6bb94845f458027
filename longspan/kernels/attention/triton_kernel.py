"""Sliding-window attention in Triton: the output (`triton_attend.py`), and the window moved on."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.attention.triton_attend import attend
from longspan.kernels.attention.triton_math import contiguous_rows

MOVE_VALUES = 4096  # that a program of `_move_window` copies of keys, and of values


@triton.jit
def _moved(past_ptr, new_ptr, target_ptr, stays, comes, real):
    """Write entries: from those of `past_ptr` where they stay, of `new_ptr` where they come."""
    past = tl.load(past_ptr, mask=stays & real, other=0.0)
    new = tl.load(new_ptr, mask=comes & real, other=0.0)
    tl.store(target_ptr, tl.where(stays, past, new.to(past.dtype)), mask=(stays | comes) & real)


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
    WIDTH: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """The newest entries of a past followed by the new ones, as many as the past has."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    group = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    p = tl.arange(0, WIDTH)[None, :]
    source = entry.to(tl.int64) + length
    stays = (source < entries)[:, None]
    comes = ((source >= entries) & (entry < entries))[:, None]
    old, new = source[:, None], (source - entries)[:, None]
    target = ((batch * entries + entry) * GROUPS + group)[:, None] * P + p
    _moved(
        past_k_ptr + batch * stride_past_k_batch + group * stride_past_k_head + old * stride_past_k + p,
        k_ptr + batch * stride_k_batch + group * stride_k_head + new * stride_k + p,
        moved_k_ptr + target,
        stays,
        comes,
        p < P,
    )
    _moved(
        past_v_ptr + batch * stride_past_v_batch + group * stride_past_v_head + old * stride_past_v + p,
        v_ptr + batch * stride_v_batch + group * stride_v_head + new * stride_v + p,
        moved_v_ptr + target,
        stays,
        comes,
        p < P,
    )


def _move(
    past_k: torch.Tensor, past_v: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows after the new tokens, in new memory: all programs read before any may write."""
    batch, entries, groups, width = past_k.shape
    moved_k, moved_v = (
        torch.empty(past.shape, dtype=past.dtype, device=past.device) for past in (past_k, past_v)
    )
    if entries == 0:
        return moved_k, moved_v
    past_k, past_v, k, v = (contiguous_rows(each) for each in (past_k, past_v, k, v))
    padded = triton.next_power_of_2(width)
    entries_each = max(1, MOVE_VALUES // padded)
    _move_window[(triton.cdiv(entries, entries_each), groups, batch)](
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
        WIDTH=padded,
        ENTRIES=entries_each,
        num_warps=4,
    )
    return moved_k, moved_v


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
    """See `longspan.kernels.attention.window_attention`; `past_k` and `past_v` tell the window."""
    y = attend(q, k, v, past_k, past_v, position, windowed=True)
    return y, *_move(past_k, past_v, k, v)
