"""A row of x as products with packed numbers read it: written so by the launch that makes it.

Within as many numbers as a word has, x[i] lies beside the one that `tensor_cores` pairs it with,
and is multiplied already, so that a lane's x is one load, and no instruction. Beside the row lie
sums of 8 of its numbers: the zero points' part of a product is one multiplication for each block,
where it would be an addition for every two numbers. bfloat16 alone.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.quantized_linear import tensor_cores

# Numbers that share a sum. Who writes a row writes so many at once, or a multiple.
SUMMED = 8
_SUMMED = tl.constexpr(SUMMED)
_X_FACTOR = tl.constexpr(tensor_cores.X_FACTOR_BF16)
_SMALL_X_FACTOR = tl.constexpr(tensor_cores.SMALL_X_FACTOR_BF16)
# Sums are of the size that products have before `RESULT_FACTOR_BF16`.
_SUM_FACTOR = tl.constexpr(1 / tensor_cores.RESULT_FACTOR_BF16)


@triton.jit
def store_laid_out(row_ptr, sums_ptr, row, first, end, BITS: tl.constexpr):
    """Store `row` [some times SUMMED] from number `first` on, a multiple of that, up to `end`."""
    GROUPS: tl.constexpr = row.shape[0] // _SUMMED
    HALF: tl.constexpr = 16 // BITS  # of a word's numbers
    i = tl.arange(0, row.shape[0])
    pair = i % HALF
    if BITS == 4:
        pair = pair % 2 * 2 + pair // 2
    place = i // (2 * HALF) * (2 * HALF) + pair * 2 + i // HALF % 2
    real = first + i < end
    rounded = tl.where(real, row, 0.0).to(row_ptr.dtype.element_ty).to(tl.float32)
    scaled = rounded * _X_FACTOR
    if BITS == 4:
        scaled = tl.where(i % 2 == 0, scaled, rounded * _SMALL_X_FACTOR)
    tl.store(row_ptr + first + place, scaled.to(row_ptr.dtype.element_ty), mask=real)
    group = tl.arange(0, GROUPS)
    sums = tl.sum(tl.reshape(rounded, [GROUPS, _SUMMED]), axis=1) * _SUM_FACTOR
    tl.store(sums_ptr + first // _SUMMED + group, sums, mask=first + _SUMMED * group < end)


def new_sums(row: torch.Tensor) -> torch.Tensor:
    """Room for the sums of a row [B, L, D]: float32 [B, L, D / 8]."""
    *outer, width = row.shape
    return torch.empty(*outer, width // SUMMED, dtype=torch.float32, device=row.device)


def in_words(row: torch.Tensor) -> torch.Tensor:
    """A row that is laid out as kernels read it: int32 [B, L, D / 2]."""
    return row.view(torch.int32)
