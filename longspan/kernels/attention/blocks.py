"""Block shapes of the attention kernels, chosen from dtype, rows, width and shared memory alone."""

from __future__ import annotations

from typing import NamedTuple

import torch

# Cards with so much feed their tensor cores from it, which leaves registers to the softmax.
LARGE_SHARED_BYTES = 200 * 1024
DECODING_ROWS = 16


class Blocks(NamedTuple):
    """What a program works on, and with.

    Attributes:
        rows: queries x heads of a key head.
        keys: that are folded together.
        warps: of a program.
        stages: of the pipeline of loads.
        registers: the most that a thread may have, so that a multiprocessor holds two programs;
            None for the compiler's choice.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


def choose_blocks(dtype: torch.dtype, rows: int, width: int, shared_bytes: int) -> Blocks:
    """Choose the block shape.

    Args:
        dtype: of the queries.
        rows: queries x heads of one key head, >= 1.
        width: of a head, a power of two.
        shared_bytes: shared memory that a program may have, in bytes.
    """
    if dtype == torch.float32:
        # No tensor cores at full float32 precision: the tile is held down by registers.
        return Blocks(16, 32, 4, 1) if width <= 64 else Blocks(16, 16, 8, 1)
    if rows <= DECODING_ROWS:
        return Blocks(16, 64, 4, 3 if width <= 128 else 2)
    if width > 128:
        return Blocks(64, 32, 8, 2)
    if shared_bytes < LARGE_SHARED_BYTES:
        return Blocks(128, 64 if width <= 64 else 32, 8, 3)
    return Blocks(128, 64, 8, 3, 128 if width <= 64 else None)
