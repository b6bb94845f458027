"""A row of x that is `laid_out`, as the lanes of a product's tiles read it.

near = brought_near(...)        # of all tiles at once
x = load_laid_out(...)          # of one
factors = load_factors(...)
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lane_words(start, BLOCK: tl.constexpr):
    """The first word of each lane of a tile that begins at word `start`: [BLOCK / 2, 4]."""
    line = tl.arange(0, BLOCK // 2)
    return start + (line // 8 * 16)[:, None] + 4 * tl.arange(0, 4)[None, :]


@triton.jit
def load_laid_out(
    x_ptr,
    start,
    near,
    unit: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What a lane's words meet in x: upper halves on one lane, lower on the other, else zeros."""
    UNITS: tl.constexpr = 16 // BITS // 2
    row = (tl.arange(0, BLOCK // 2) % 8)[:, None]
    word = lane_words(0, BLOCK)
    holds = (row // 2 == tl.arange(0, 4)[None, :]) & ((start + word) * (32 // BITS) < WIDTH)
    first = word * (16 // BITS) + (row % 2 * UNITS + unit) * 4
    # An address of its own for each lane, and the same step for all; the hint once more, since the
    # step of the first tile is no operation that could bear it.
    first += near
    source = tl.max_contiguous(x_ptr + (first[:, :, None] + tl.arange(0, 4)), [1, 2, 4])
    source = tl.max_contiguous(source + start * (16 // BITS), [1, 2, 4])
    return tl.load(source, mask=holds[:, :, None], other=0)


@triton.jit
def load_factors(
    sums_ptr, start, near, WIDTH: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """Factor and sum of each lane's two groups of x: float32 [lines, 4, 4]."""
    word = lane_words(0, BLOCK)
    inside = (start + word) * (32 // BITS) < WIDTH
    first = word + near
    source = tl.max_contiguous(sums_ptr + (first[:, :, None] + tl.arange(0, 4)), [1, 2, 4])
    source = tl.max_contiguous(source + start, [1, 2, 4])
    return tl.load(source, mask=inside[:, :, None], other=0.0)


@triton.jit
def _asked_for(x_ptr, first, mask):
    """The first of the four words from each of `first` on, all of them loaded: int32 [lines, 4]."""
    source = x_ptr + (first[:, :, None] + tl.arange(0, 4))
    source = tl.max_contiguous(tl.multiple_of(source, [1, 1, 16]), [1, 2, 4])
    block = tl.load(source, mask=mask[:, :, None], other=0)
    word, _ = tl.split(tl.reshape(block, [block.shape[0], 4, 2, 2]))
    word, _ = tl.split(word)
    return word.to(tl.int32, bitcast=True)


@triton.jit
def _asked_for_tiles(
    x_ptr,
    start,
    WORDS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A word of each 16 bytes, of which LANES belong to 16 of a row's WORDS: int32 [lines, 4]."""
    line = tl.arange(0, BLOCK // 2)
    lane = (line % 8 * 4)[:, None] + tl.arange(0, 4)[None, :]
    asked = tl.zeros([BLOCK // 2, 4], dtype=tl.int32)
    for tile in tl.static_range(0, DEPTH, 32 // LANES):
        part = tile + lane // LANES
        word = start + part * BLOCK + (line // 8 * 16)[:, None]
        first = word * (LANES // 4) + lane % LANES * 4
        mask = (part < DEPTH) & (first < WORDS * (LANES // 4))
        asked |= _asked_for(x_ptr, first, mask)
    return asked


@triton.jit
def brought_near(
    x_ptr,
    sums_ptr,
    squares_ptr,
    start,
    outputs,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Zeros int32 [lines, 4], once all that a lane's warp will read of x lies in the first cache.

    A lane reads its x tile by tile, as its registers allow: of each it would wait for the second
    cache. So the lanes of a warp ask for a part of all tiles first.
    """
    WORDS: tl.constexpr = WIDTH * BITS // 32
    asked = _asked_for_tiles(x_ptr, start, WORDS, 64 // BITS, BLOCK, DEPTH)
    asked |= _asked_for_tiles(sums_ptr, start, WORDS, 4, BLOCK, DEPTH)
    # The norm's squares, which are summed up later: all lanes of the program together.
    for first in tl.static_range(0, PARTS, 8 * BLOCK):
        part = first + 4 * (4 * tl.arange(0, BLOCK // 2)[:, None] + tl.arange(0, 4)[None, :])
        asked |= _asked_for(squares_ptr, part, part + 4 <= PARTS)
    # Outputs are not negative, which the compiler does not know.
    return tl.multiple_of(asked & (outputs >> 31), [16, 16])
