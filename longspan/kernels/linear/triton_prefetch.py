"""Bytes that are brought into the second cache for programs that have not begun.

The first programs of a launch fill the registers and wait, and the memory idles until they end. So
they ask for the others' rows: one instruction of a warp (compute capability 9.0, where launches
overlap), of which nobody waits for the result.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from longspan.kernels.linear.triton_product import Matrix

_PREFETCH = tl.constexpr(
    "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $3; "
    "mov.b32 $0, 0; }"
)


@triton.jit
def prefetch(ptr, start, numbers, end, WARPS: tl.constexpr):
    """Bring numbers [start, start + numbers) of `ptr`, before `end`, into the second cache.

    Each warp asks for its share of them, in multiples of 16 bytes; a few at the end may be missing.
    """
    NUMBERS: tl.constexpr = 128 // ptr.dtype.element_ty.primitive_bitwidth  # of 16 bytes
    thread = tl.arange(0, 32 * WARPS)
    share = (numbers // (NUMBERS * WARPS) + 1) * NUMBERS
    first = start + thread // 32 * share
    share = tl.minimum(share, (tl.minimum(start + numbers, end) - first) // NUMBERS * NUMBERS)
    wanted = (thread % 32 == 0) & (share > 0)
    tl.inline_asm_elementwise(
        _PREFETCH, "=r,l,r,r",
        [(ptr + first).to(tl.int64), tl.where(wanted, 1, 0), share.to(tl.int32) * (16 // NUMBERS)],
        tl.int32, False, 1,
    )  # fmt: skip


def can_prefetch(matrix: Matrix) -> bool:
    """Whether a matrix is packed, lies where the instruction takes it, and in half of the cache."""
    weight, scales = matrix.weight, matrix.scales
    if scales is None or weight.data_ptr() % 16 or scales.data_ptr() % 16:
        return False
    return 2 * (weight.nbytes + scales.nbytes) <= _cache_bytes(weight.device)


@cache
def _cache_bytes(device: torch.device) -> int:
    """Bytes of the second cache."""
    size: int = torch.cuda.get_device_properties(device).L2_cache_size
    return size
