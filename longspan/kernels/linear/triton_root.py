"""What a program that multiplies a row takes of its norm, `longspan.kernels.deferred_norm`."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def load_squares(squares_ptr, PARTS: tl.constexpr, PART_BLOCK: tl.constexpr):
    """The sums of squares, on their way while the row is multiplied; None for no norm."""
    squares = None
    if squares_ptr is not None:
        part = tl.arange(0, PART_BLOCK)
        squares = tl.load(squares_ptr + part, mask=part < PARTS, other=0.0)
        # Otherwise the compiler asks for them when the product is done.
        tl.debug_barrier()
    return squares


@triton.jit
def divide_by_root(y, squares, eps, WIDTH: tl.constexpr):
    """The product of a row, divided by the root of its mean square; as it is without a norm."""
    if squares is not None:
        y = y * (1.0 / tl.sqrt(tl.sum(squares) / WIDTH + eps))
    return y


def parts_of(squares: torch.Tensor | None) -> dict[str, Any]:
    """Constants of a launch."""
    parts = 0 if squares is None else squares.numel()
    return {"PARTS": parts, "PART_BLOCK": triton.next_power_of_2(max(1, parts))}
