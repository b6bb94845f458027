"""Attention over a cache in Triton: the output (`attention/triton_attend.py`), and the append."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.attention.triton_attend import attend
from longspan.kernels.attention.triton_math import contiguous_rows

COPY_VALUES = 4096


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
):
    """Copy the entries in use, and the new ones after them; the rest stays unwritten."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    group = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    p = tl.arange(0, WIDTH)[None, :]
    used = tl.load(position_ptr)
    # What does not fit is not written: beyond the cache lies another tensor.
    old = (entry < used)[:, None] & (entry < capacity)[:, None] & (p < P)
    fresh = (entry >= used)[:, None] & (entry < tl.minimum(used + length, capacity))[:, None]
    fresh = fresh & (p < P)
    past = past_ptr + batch * stride_past_batch + group * stride_past_head
    new = new_ptr + batch * stride_new_batch + group * stride_new_head
    kept = tl.load(past + entry[:, None] * stride_past + p, mask=old, other=0.0)
    added = tl.load(new + (entry - used)[:, None] * stride_new + p, mask=fresh, other=0.0)
    value = tl.where(old, kept, added.to(kept.dtype))
    places = ((batch * capacity + entry) * GROUPS + group)[:, None] * P + p
    tl.store(cache_ptr + places, value, mask=old | fresh)


def _appended(past: torch.Tensor, new: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    batch, capacity, groups, width = past.shape
    cache = torch.empty(past.shape, dtype=past.dtype, device=past.device)
    padded = triton.next_power_of_2(width)
    entries = max(1, COPY_VALUES // padded)
    _append[(triton.cdiv(capacity, entries), groups, batch)](
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
    q, k, v, past_k, past_v = (contiguous_rows(each) for each in (q, k, v, past_k, past_v))
    y = attend(q, k, v, past_k, past_v, position, windowed=False)
    return y, _appended(past_k, k, position), _appended(past_v, v, position)
