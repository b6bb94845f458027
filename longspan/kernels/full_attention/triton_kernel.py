"""Attention over a cache in Triton: the output (`attention/triton_attend.py`), and the append."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.attention.int8_rows import Rows, tensors_of
from longspan.kernels.attention.triton_attend import attend
from longspan.kernels.attention.triton_int8 import new_rows, planes, rows_like
from longspan.kernels.attention.triton_math import contiguous_rows
from longspan.kernels.donation import is_donated

COPY_VALUES = 4096


@triton.jit
def _write(
    past_ptr, new_ptr, cache_ptr, stride_past, stride_new, stride_cache, entry, used, old, fresh
):
    """Entries: those of the past where they are old, the new ones where they are fresh."""
    kept = tl.load(past_ptr + entry * stride_past, mask=old, other=0.0)
    added = tl.load(new_ptr + (entry - used) * stride_new, mask=fresh, other=0.0)
    value = tl.where(old, kept, added.to(kept.dtype))
    tl.store(cache_ptr + entry * stride_cache, value, mask=old | fresh)


@triton.jit(do_not_specialize=["length", "capacity"])
def _append(
    past_k_ptr,
    past_v_ptr,
    k_ptr,
    v_ptr,
    cache_k_ptr,
    cache_v_ptr,
    position_ptr,
    length,
    capacity,
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
    IN_PLACE: tl.constexpr,
):
    """Copy the entries in use, and the new ones after them; the rest stays unwritten.

    Where the caches are the past itself, only the new ones are written.
    """
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)[:, None]
    group = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    p = tl.arange(0, WIDTH)[None, :]
    used = tl.load(position_ptr)
    if IN_PLACE:
        entry += used
    # What does not fit is not written: beyond the cache lies another tensor.
    old = (entry < used) & (entry < capacity) & (p < P)
    fresh = (entry >= used) & (entry < tl.minimum(used + length, capacity)) & (p < P)
    cache = (batch * capacity * GROUPS + group) * P + p
    _write(
        past_k_ptr + batch * stride_past_k_batch + group * stride_past_k_head + p,
        k_ptr + batch * stride_k_batch + group * stride_k_head + p,
        cache_k_ptr + cache,
        stride_past_k,
        stride_k,
        GROUPS * P,
        entry,
        used,
        old,
        fresh,
    )
    _write(
        past_v_ptr + batch * stride_past_v_batch + group * stride_past_v_head + p,
        v_ptr + batch * stride_v_batch + group * stride_v_head + p,
        cache_v_ptr + cache,
        stride_past_v,
        stride_v,
        GROUPS * P,
        entry,
        used,
        old,
        fresh,
    )


def _write_cache(
    position: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache_k: torch.Tensor,
    cache_v: torch.Tensor,
) -> None:
    """Fill the next caches [B, C, G, P], which may be the past itself."""
    batch, capacity, groups, width = past_k.shape
    in_place = cache_k.data_ptr() == past_k.data_ptr()
    past_k, past_v, k, v = (contiguous_rows(each) for each in (past_k, past_v, k, v))
    padded = triton.next_power_of_2(width)
    entries = max(1, COPY_VALUES // padded)
    written = k.shape[1] if in_place else capacity
    _append[(triton.cdiv(written, entries), groups, batch)](
        past_k,
        past_v,
        k,
        v,
        cache_k,
        cache_v,
        position,
        k.shape[1],
        capacity,
        *past_k.stride()[:3],
        *past_v.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        GROUPS=groups,
        P=width,
        WIDTH=padded,
        ENTRIES=entries,
        IN_PLACE=in_place,
        num_warps=4,
    )


def full_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: Rows,
    past_v: Rows,
    position: torch.Tensor,
) -> tuple[torch.Tensor, Rows, Rows]:
    """See `longspan.kernels.full_attention.full_attention`."""
    new_k, new_v = new_rows(contiguous_rows(k), contiguous_rows(v), past_k, past_v)
    y = attend(q, new_k.used, new_v.used, past_k, past_v, position, windowed=False)
    # The attention before has read the past.
    in_place = is_donated(*tensors_of(past_k, past_v))
    cache_k, cache_v = (rows_like(past, in_place=in_place) for past in (past_k, past_v))
    rows = (past_k, past_v, new_k.kept, new_v.kept, cache_k, cache_v)
    for tensors in zip(*(planes(each) for each in rows), strict=True):
        _write_cache(position, *tensors)
    return y, cache_k, cache_v
