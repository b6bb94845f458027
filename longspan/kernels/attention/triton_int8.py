"""What int8 caches need in Triton: new rows quantized, and values and scales moved alike."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from longspan.kernels.attention.int8_rows import LEVELS, Int8Rows, Rows
from longspan.kernels.donation import moved_into, new_like

BLOCK_VALUES = 2048  # that a program quantizes
# Added to a float32 below 2^22 and taken off again, it rounds to the nearest integer, half to even.
_ROUND = tl.constexpr(1.5 * 2**23)
_LEVELS = tl.constexpr(float(LEVELS))


class NewRows(NamedTuple):
    """New keys or values.

    Attributes:
        used: float [B, L, G, P], what queries of the same call read: `kept`, in their dtype.
        kept: what the cache will hold.
    """

    used: torch.Tensor
    kept: Rows


@triton.jit
def _quantize(
    x_ptr,
    values_ptr,
    scale_ptr,
    used_ptr,
    row,
    rows,
    stride_x,
    stride_x_head,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Rows of one sequence: `row` is a token's head."""
    p = tl.arange(0, WIDTH)[None, :]
    real = (row < rows)[:, None] & (p < P)
    source = row // GROUPS * stride_x + row % GROUPS * stride_x_head
    x = tl.load(x_ptr + source[:, None] + p, mask=real, other=0.0).to(tl.float32)
    scale = tl.max(tl.abs(x), axis=1).to(scale_ptr.dtype.element_ty)
    wide = scale.to(tl.float32)
    divisor = tl.where(wide == 0.0, 1.0, wide)
    steps = tl.div_rn(tl.full(divisor.shape, 1.0, tl.float32), divisor) * _LEVELS
    # Between the product and the sum, so that they are not fused: the reference rounds both.
    held = tl.minimum(tl.maximum(x * steps[:, None], -_LEVELS), _LEVELS)
    values = (held + _ROUND) - _ROUND
    used = values * (wide / _LEVELS)[:, None]
    target = row[:, None] * P + p
    tl.store(values_ptr + target, values.to(tl.int8), mask=real)
    tl.store(used_ptr + target, used.to(used_ptr.dtype.element_ty), mask=real)
    tl.store(scale_ptr + row, scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def _quantize_rows(
    k_ptr,
    v_ptr,
    k_values_ptr,
    v_values_ptr,
    k_scale_ptr,
    v_scale_ptr,
    k_used_ptr,
    v_used_ptr,
    rows,
    stride_k_batch,
    stride_k,
    stride_k_head,
    stride_v_batch,
    stride_v,
    stride_v_head,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Quantize keys, or, in the second half of the programs, values."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    batch = tl.program_id(2).to(tl.int64)
    of_batch = batch * rows
    if tl.program_id(1) == 0:
        _quantize(
            k_ptr + batch * stride_k_batch,
            k_values_ptr + of_batch * P,
            k_scale_ptr + of_batch,
            k_used_ptr + of_batch * P,
            row,
            rows,
            stride_k,
            stride_k_head,
            GROUPS,
            P,
            WIDTH,
        )
    else:
        _quantize(
            v_ptr + batch * stride_v_batch,
            v_values_ptr + of_batch * P,
            v_scale_ptr + of_batch,
            v_used_ptr + of_batch * P,
            row,
            rows,
            stride_v,
            stride_v_head,
            GROUPS,
            P,
            WIDTH,
        )


def new_rows(
    k: torch.Tensor, v: torch.Tensor, past_k: Rows, past_v: Rows
) -> tuple[NewRows, NewRows]:
    """New keys and values [B, L, G, P] as their caches will hold them, and as they are read now.

    Args:
        k: float [B, L, G, P], its last axis contiguous.
        v: dtype of `k` [B, L, G, P], its last axis contiguous.
        past_k: the cache of the keys; one of a float dtype takes them as they are.
        past_v: the cache of the values, in int8 if `past_k` is.
    """
    if not isinstance(past_k, Int8Rows) or not isinstance(past_v, Int8Rows):
        return NewRows(k, k), NewRows(v, v)
    batch, length, groups, width = k.shape
    both = [_empty(each, past) for each, past in ((k, past_k), (v, past_v))]
    padded = triton.next_power_of_2(width)
    block = max(1, BLOCK_VALUES // padded)
    (k_used, k_kept), (v_used, v_kept) = both
    _quantize_rows[(triton.cdiv(length * groups, block), 2, batch)](
        k,
        v,
        k_kept.values,
        v_kept.values,
        k_kept.scale,
        v_kept.scale,
        k_used,
        v_used,
        length * groups,
        *k.stride()[:3],
        *v.stride()[:3],
        GROUPS=groups,
        P=width,
        WIDTH=padded,
        ROWS=block,
        num_warps=4,
    )
    return NewRows(k_used, k_kept), NewRows(v_used, v_kept)


def _empty(new: torch.Tensor, past: Int8Rows) -> tuple[torch.Tensor, Int8Rows]:
    """Room for what is read and what is kept."""
    shape, device = new.shape, new.device
    used = torch.empty(shape, dtype=new.dtype, device=device)
    values = torch.empty(shape, dtype=torch.int8, device=device)
    scale = torch.empty(shape[:-1], dtype=past.scale.dtype, device=device)
    return used, Int8Rows(values, scale)


def scales_of(*several: Rows) -> tuple[torch.Tensor, ...]:
    """The rows' scales, contiguous; of rows without, a tensor that no kernel reads."""
    return tuple(
        rows.scale.contiguous() if isinstance(rows, Int8Rows) else rows for rows in several
    )


def planes(rows: Rows) -> tuple[torch.Tensor, ...]:
    """The rows' tensors as rows [B, M, heads, width]: the scales of all heads are one head's."""
    return (rows.values, rows.scale[:, :, None]) if isinstance(rows, Int8Rows) else (rows,)


def rows_like(rows: Rows, *, in_place: bool) -> Rows:
    """Memory for the next rows, which `longspan.kernels.donation.new_like` gives."""
    if isinstance(rows, Int8Rows):
        return Int8Rows(*(new_like(tensor, in_place=in_place) for tensor in rows))
    return new_like(rows, in_place=in_place)


def rows_moved_into(rows: Rows, new_rows: Rows) -> Rows:
    """The next rows, where `longspan.kernels.donation.moved_into` says."""
    if isinstance(rows, Int8Rows) and isinstance(new_rows, Int8Rows):
        pairs = zip(rows, new_rows, strict=True)
        return Int8Rows(*(moved_into(past, new) for past, new in pairs))
    assert not isinstance(rows, Int8Rows), "rows in int8 are followed by such"
    assert not isinstance(new_rows, Int8Rows), "rows of a float dtype are followed by such"
    return moved_into(rows, new_rows)
