"""How the keys of few queries are shared out among programs, and what that takes. No torch here.

A program owns a block of rows of one key head. Where those are few, as in decoding, the GPU would
stand idle while each walks a long past: then the past is cut into splits, whose sums are joined.
"""

from __future__ import annotations

# Rows of scores that a CPU writes down at once.
BLOCK_ROWS = 64
# Queries of a window, for all heads; the same in plain torch, whatever is attended to.
WINDOW_BLOCK_QUERIES = 32
PLAIN_BLOCK_QUERIES = 32

# Two programs for each multiprocessor of a large GPU, nearly.
PROGRAMS = 256
# Rows of all programs together, which bounds the scratch.
PROGRAM_ROWS = 16_384
LEAST_KEYS = 128
MOST_SPLITS = 64
FLOAT32_BYTES = 4


def block_queries(shared: int) -> int:
    """Queries whose scores a CPU writes down at once.

    Args:
        shared: query heads of a key head.
    """
    return max(1, BLOCK_ROWS // shared)


def count_splits(programs: int, block_rows: int, capacity: int) -> int:
    """Splits of the past, a power of two; 1 where it is not cut.

    Args:
        programs: without splits, >= 1.
        block_rows: rows of a program's block.
        capacity: entries that the past may have; a split of a full one has `LEAST_KEYS` or more.
    """
    most_programs = min(PROGRAMS, PROGRAM_ROWS // block_rows)
    splits = 1
    while (
        2 * splits * programs <= most_programs
        and 2 * splits * LEAST_KEYS <= capacity
        and 2 * splits <= MOST_SPLITS
    ):
        splits *= 2
    return splits


def scratch_bytes(head_dim: int) -> int:
    """The most bytes that the splits' sums take, whatever the call.

    Args:
        head_dim: P; a row has P sums of values, a sum of weights and a maximum, in float32.
    """
    return PROGRAM_ROWS * (head_dim + 2) * FLOAT32_BYTES
