"""The cache of anchor attention in Triton: counting anchors, and filling the next cache.

Both read and write the counters where they lie on the device; nothing waits for the host.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["length"])
def count_anchors(
    is_anchor_ptr,
    anchors_ptr,
    entries_ptr,
    before_ptr,
    ends_ptr,
    new_anchors_ptr,
    new_entries_ptr,
    length,
    TOKENS: tl.constexpr,
):
    """before[t]: anchors before token t; ends[j]: the token that is anchor j; the new counters."""
    found = 0
    last = -1
    for start in range(0, length, TOKENS):
        token = start + tl.arange(0, TOKENS)
        flag = tl.load(is_anchor_ptr + token, mask=token < length, other=0).to(tl.int32)
        before = found + tl.cumsum(flag, axis=0) - flag
        tl.store(before_ptr + token, before, mask=token < length)
        tl.store(ends_ptr + before, token, mask=flag != 0)
        found += tl.sum(flag, axis=0)
        last = tl.maximum(last, tl.max(tl.where(flag != 0, token, -1), axis=0))
    new_anchors = tl.load(anchors_ptr) + found
    stay = tl.where(found > 0, new_anchors, tl.load(entries_ptr))
    tl.store(new_anchors_ptr, new_anchors)
    tl.store(new_entries_ptr, stay + (length - 1 - last))


@triton.jit
def _move(past_ptr, fresh_ptr, target_ptr, stays, comes, p, P: tl.constexpr):
    """Write rows: from those of `past_ptr` where they stay, of `fresh_ptr` where they come."""
    real = (p < P)[None, :]
    past = tl.load(past_ptr[:, None] + p[None, :], mask=stays[:, None] & real, other=0.0)
    fresh = tl.load(fresh_ptr[:, None] + p[None, :], mask=comes[:, None] & real, other=0.0)
    rows = tl.where(stays[:, None], past, fresh)
    tl.store(target_ptr[:, None] + p[None, :], rows, mask=(stays | comes)[:, None] & real)


@triton.jit(do_not_specialize=["capacity"])
def keep_entries(
    k_ptr,
    v_ptr,
    past_k_ptr,
    past_v_ptr,
    new_k_ptr,
    new_v_ptr,
    ends_ptr,
    anchors_ptr,
    entries_ptr,
    new_anchors_ptr,
    new_entries_ptr,
    capacity,
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
    G: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    """Fill the new cache with what stays, the call's anchors, and the tokens after the last.

    Where the new cache is the past itself, what stays is there.
    """
    group = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    p = tl.arange(0, WIDTH)

    anchors = tl.load(anchors_ptr).to(tl.int32)
    found = tl.load(new_anchors_ptr).to(tl.int32) - anchors
    stay = tl.where(found > 0, anchors, tl.load(entries_ptr).to(tl.int32))
    used = tl.minimum(tl.load(new_entries_ptr).to(tl.int32), capacity)
    if IN_PLACE:
        row += stay
    stays = row < tl.minimum(stay, used)
    comes = (row >= stay) & (row < used)
    # After what stays: the call's anchors, then the tokens after the last of them.
    index = row - stay
    end = tl.load(ends_ptr + index, mask=comes & (index < found), other=0)
    tail = tl.load(ends_ptr + found - 1, mask=found > 0, other=-1) + 1
    token = tl.where(index < found, end, tail + index - found).to(tl.int64)

    wide = row.to(tl.int64)
    target = ((batch * capacity + wide) * G + group) * P
    _move(
        past_k_ptr
        + batch * stride_past_k_batch
        + wide * stride_past_k
        + group * stride_past_k_head,
        k_ptr + batch * stride_k_batch + token * stride_k + group * stride_k_head,
        new_k_ptr + target,
        stays,
        comes,
        p,
        P,
    )
    _move(
        past_v_ptr
        + batch * stride_past_v_batch
        + wide * stride_past_v
        + group * stride_past_v_head,
        v_ptr + batch * stride_v_batch + token * stride_v + group * stride_v_head,
        new_v_ptr + target,
        stays,
        comes,
        p,
        P,
    )
