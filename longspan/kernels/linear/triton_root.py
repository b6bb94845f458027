"""What a program that multiplies a row takes of its norm, `longspan.kernels.deferred_norm`."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def inverse_root(squares_ptr, eps, WIDTH: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr):
    """1 / root of the mean square, of PARTS sums of squares; 1 without a norm.

    Every warp sums all of them, where LANES are a warp's: no warp waits for another.
    """
    root = 1.0
    if squares_ptr is not None:
        lane = tl.arange(0, LANES)
        squares = tl.zeros([LANES], dtype=tl.float32)
        for start in tl.static_range(0, PARTS, LANES):
            part = start + lane
            squares += tl.load(squares_ptr + part, mask=part < PARTS, other=0.0)
        root = tl.rsqrt(tl.sum(squares) / WIDTH + eps)
    return root


def parts_of(squares: torch.Tensor | None) -> dict[str, Any]:
    """Constants of a launch: at most 32 loads."""
    parts = 0 if squares is None else squares.numel()
    return {"PARTS": parts, "LANES": max(32, triton.next_power_of_2(-(-parts // 32)))}
