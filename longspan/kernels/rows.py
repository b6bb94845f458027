"""Rows of a tensor, and the block shapes of the kernels that hold whole rows in registers."""

from __future__ import annotations

from functools import cache

import torch
import triton

# 65,536 float32 values over 16 warps are 128 registers a thread; a longer row would spill.
MAX_WIDTH = 65_536
# Values a program holds: narrow rows share a program, so that no launch has idle lanes.
BLOCK_VALUES = 2048
MIN_REST = 512


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


@cache
def row_block(width: int, *, neighbours: int) -> dict[str, int]:
    """A program's rows, the widths of a row's two parts, and warps.

    A row's own width would be rounded up to a power of two: 5,120 channels to 8,192. Of a wide row
    each part is a power of two: 4,096 and 1,024. A row without a second part has 0 for its width.
    Both are dealt out to the threads by so many neighbours, which are 16 bytes.
    """
    padded = triton.next_power_of_2(width)
    # 32 values a thread where registers allow it.
    warps = min(16, max(4, padded // 1024))
    if padded <= max(width, BLOCK_VALUES):
        rows = max(1, BLOCK_VALUES // padded)
        return {"ROWS": rows, "MAIN": padded, "REST": 0, "num_warps": warps}
    main = padded // 2
    rest = max(MIN_REST, triton.next_power_of_2(width - main))
    warps = max(warps // 2, min(warps, rest // (32 * neighbours)))
    return {"ROWS": 1, "MAIN": main, "REST": rest, "num_warps": warps}
