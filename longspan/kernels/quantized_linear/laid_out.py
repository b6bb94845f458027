"""A row of x as products with packed numbers read it: whole numbers, written so by who makes it.

As many numbers as two words of the matrix have share a factor: they are whole numbers of 16 bits
times it, more exact than bfloat16, and `tensor_cores` multiplies them as such with the words as
they lie. Of 4 bits a word's byte holds n + 16 m, of which x n + y m are

    x n + y m = (y / 16) (n + 16 m) + (x - y / 16) n

so what lies in the row are y / 16, rounded, and x less that; y has 12 bits. The upper 8 bits of
what a lane reads at once stand together, then the lower. Beside the row lie the factor of each
group and the sum of its numbers, which the zero points are multiplied with: once for each block.
Products with x in bfloat16 alone read it.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

# The largest whole number: with a sixteenth of another, and rounded, still of 16 bits.
_LARGEST = tl.constexpr(30700.0)
_PART = tl.constexpr(1 / 30700.0)
# Groups whose largest number is below it count as zeros: the factor would not be a number.
_SMALLEST = tl.constexpr(1e-30)
# 1.5 * 2^23: a number below 2^22 that is added to it is rounded, and lies in the low bits.
_ROUND = tl.constexpr(12582912.0)
_ROUND_BITS = tl.constexpr(0x4B400000)


def group_size(bits: int) -> int:
    """Numbers that share a factor. Who writes a row writes so many at once, or a multiple."""
    return 64 // bits


@triton.jit
def _whole(x):
    """x rounded to a whole number, int32."""
    return (x + _ROUND).to(tl.int32, bitcast=True) - _ROUND_BITS


@triton.jit
def _store_halves(bytes_ptr, byte, LOWER: tl.constexpr, whole, real):
    """The upper 8 bits, and LOWER bytes behind them the rest."""
    upper = (whole + 128) >> 8
    tl.store(bytes_ptr + byte, upper.to(tl.int8), mask=real)
    tl.store(bytes_ptr + byte + LOWER, (whole - (upper << 8)).to(tl.int8), mask=real)


@triton.jit
def store_laid_out(row_ptr, sums_ptr, row, first, end, BITS: tl.constexpr):
    """Store `row` [some groups] from number `first` on, a multiple of a group, up to `end`."""
    GROUP: tl.constexpr = 64 // BITS
    GROUPS: tl.constexpr = row.shape[0] // GROUP
    # Of one row: 32 bits are enough, and shifts for what is not negative.
    first, end = tl.cast(first, tl.uint32), tl.cast(end, tl.uint32)
    bytes_ptr = row_ptr.to(tl.pointer_type(tl.int8), bitcast=True)
    grouped = tl.reshape(row, [GROUPS, GROUP])
    largest = tl.max(tl.abs(grouped), axis=1)
    empty = largest < _SMALLEST
    scale = tl.where(empty, 0.0, _LARGEST / tl.where(empty, 1.0, largest))
    # What is infinite or no number makes no number of the factor.
    factor = largest * _PART + 0.0 * tl.sum(grouped, axis=1)
    scaled = grouped * scale[:, None]
    if BITS == 4:
        low, high = tl.split(tl.reshape(scaled, [GROUPS, GROUP // 2, 2]))
        high = _whole(high * 0.0625)
        low = _whole(low) - high
        # x n + y m with n = m = 1.
        sums = tl.sum(low + 17 * high, axis=1)
        # Four bytes of one, then of the other, for each word.
        pair = first // 2 + tl.arange(0, GROUPS)[:, None] * (GROUP // 2)
        pair += tl.arange(0, GROUP // 2)[None, :]
        byte = pair // 16 * 64 + pair % 16 // 4 * 8 + pair % 4
        real = 2 * pair < end
        _store_halves(bytes_ptr, byte, 32, high, real)
        _store_halves(bytes_ptr, byte + 4, 32, low, real)
    else:
        whole = _whole(scaled)
        sums = tl.sum(whole, axis=1)
        i = first + tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        _store_halves(bytes_ptr, i // 16 * 32 + i % 16, 16, whole, i < end)
    group = first // GROUP + tl.arange(0, GROUPS)
    real = group * GROUP < end
    tl.store(sums_ptr + 2 * group, factor, mask=real)
    tl.store(sums_ptr + 2 * group + 1, factor * sums.to(tl.float32), mask=real)


def new_sums(row: torch.Tensor, bits: int) -> torch.Tensor:
    """Room for the groups of a row [B, L, D]: float32 [B, L, 2 groups], a factor and a sum each."""
    *outer, width = row.shape
    groups = width // group_size(bits)
    return torch.empty(*outer, 2 * groups, dtype=torch.float32, device=row.device)


def in_words(row: torch.Tensor) -> torch.Tensor:
    """A row that is laid out as kernels read it: int32 [B, L, D / 2]."""
    return row.view(torch.int32)
