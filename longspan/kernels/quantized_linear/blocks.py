"""How a matrix of 8 or 4 bits is dealt out to programs."""

from __future__ import annotations

# Words of a row that a warp reads at once.
WARP_WORDS = 16
# Tiles of a warp that are loaded before it multiplies the first.
MAX_DEPTH = 5
MAX_WARPS = 8
# From so many outputs on a lane has two rows, whose x is read once.
MANY_OUTPUTS = 8192
# The same where x is laid out, and the rows are on their way at once; and what comes of 16 rows can
# be laid out again.
MANY_LAID_OUT = 512
# Up to so many outputs programs of 32 rows all have room at once on a large GPU, three on each
# multiprocessor: a lane has four rows, and so many registers that the launch after it finds room,
# too. By eight warps it has two. Measured; docs/kernels.md.
ALL_AT_ONCE = 12_288
REGISTERS_OF_FOUR_ROWS, REGISTERS_BY_EIGHT_WARPS = 152, 96
# Of more rows of x a lane has one row of the weight again: two would spill.
MANY_X_ROWS = 4


def word_block(
    outputs: int, row_words: int, x_rows: int = 1, *, laid_out: bool = False
) -> dict[str, int]:
    """Outputs of a program, words of a tile, tiles ahead, warps; registers where they are capped.

    A row is split over so many warps that each has its part of it on the way at once.

    Args:
        outputs: rows of the weight.
        row_words: words of 32 bits of a row.
        x_rows: rows of x that meet them, whose sums take registers.
        laid_out: whether x is one row that is `laid_out`.
    """
    warps = 1
    while warps < MAX_WARPS and row_words > warps * WARP_WORDS * MAX_DEPTH:
        warps *= 2
    tiles = -(-row_words // (warps * WARP_WORDS))
    # Of more tiles, as many times the depth as it takes.
    depth = -(-tiles // -(-tiles // MAX_DEPTH))
    at_once = laid_out and tiles == depth
    many = MANY_LAID_OUT if at_once else MANY_OUTPUTS
    rows = 16 if outputs >= many and x_rows <= MANY_X_ROWS else 8
    block = {"ROWS": rows, "BLOCK": warps * WARP_WORDS, "DEPTH": depth, "num_warps": warps}
    if at_once and MANY_OUTPUTS <= outputs <= ALL_AT_ONCE:
        if warps <= MAX_WARPS // 2:
            block |= {"ROWS": 32, "maxnreg": REGISTERS_OF_FOUR_ROWS}
        else:
            block |= {"maxnreg": REGISTERS_BY_EIGHT_WARPS}
    return block
