"""How the past of few queries is shared out among programs, and what that takes. No torch here.

A program owns a block of rows of one key head. Where those are few, as in decoding, the GPU would
stand idle while each walks a long past: then the past is cut into splits, whose sums are joined.
"""

from __future__ import annotations

PROGRAMS = 256
LEAST_KEYS = 256
MOST_SPLITS = 64
FLOAT32_BYTES = 4


def count_splits(programs: int, capacity: int) -> int:
    """Splits of the past, a power of two; 1 where it is not cut.

    Args:
        programs: without splits, >= 1.
        capacity: entries of the cache; a split of a full one has `LEAST_KEYS` keys or more.
    """
    splits = 1
    while (
        2 * splits * programs <= PROGRAMS
        and 2 * splits * LEAST_KEYS <= capacity
        and 2 * splits <= MOST_SPLITS
    ):
        splits *= 2
    return splits


def scratch_bytes(block_rows: int, head_dim: int) -> int:
    """The most bytes that the splits' sums take, whatever the call.

    Args:
        block_rows: rows of a program's block.
        head_dim: P; a row has P sums of values, a sum of weights and a maximum, in float32.
    """
    return PROGRAMS * block_rows * (head_dim + 2) * FLOAT32_BYTES
