"""Rows of a tensor, and the block shapes of the kernels that hold whole rows in registers."""

from __future__ import annotations

import torch
import triton

# 65,536 float32 values over 16 warps are 128 registers a thread; a longer row would spill.
MAX_WIDTH = 65_536
# Values a program holds: narrow rows share a program, so that no launch has idle lanes.
BLOCK_VALUES = 2048


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as rows [..., D]; a view where they lie evenly apart."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def check_width(op: str, width: int) -> None:
    """Raise where a row is wider than a program holds.

    Raises:
        ValueError: it is.
    """
    if width > MAX_WIDTH:
        raise ValueError(
            f"{op}: x is {width} wide; the Triton kernel holds a row in registers, "
            f"{MAX_WIDTH} at most"
        )


def row_block(width: int) -> tuple[int, int]:
    """Rows of a program, and the width of a row as a power of two."""
    padded = triton.next_power_of_2(width)
    return max(1, BLOCK_VALUES // padded), padded


def row_warps(padded: int) -> int:
    """Warps of a program whose rows are `padded` wide: 32 values a thread, 4 to 16 warps."""
    return min(16, max(4, padded // 1024))
