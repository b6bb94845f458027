"""What a linear layer of 8 or 4 bits dequantises at once on CUDA. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

# 64 MiB of 16-bit numbers: all of a layer's matrix for most models, a part of a large head.
SCRATCH_NUMBERS = 2**25


def scratch_numbers(outputs: int, width: int) -> int:
    """Numbers of the scratch matrix for a weight [outputs, width]."""
    return min(outputs, max(1, SCRATCH_NUMBERS // width)) * width


def scratch_parts(outputs: int, width: int) -> Iterator[slice]:
    """The outputs that are computed at once."""
    rows = scratch_numbers(outputs, width) // width
    for start in range(0, outputs, rows):
        yield slice(start, min(outputs, start + rows))
