"""Some rows of a matrix of 8 or 4 bits times one vector, in a program's registers.

A tile is 8 rows times 16 words of 32 bits for each warp of a program; a lane has four words of one
row, 16 bytes. So lie the operands of a tensor core's product (`tensor_cores`), which x of 16 bits
takes on a GPU that has it; otherwise plain float32 multiplies. The tiles that a program loads ahead
are all on their way before it waits for x: a row of 2,560 numbers is five tiles for each of four
warps. The sums of the warps meet once, at the end.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations; its tuples grow.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,misc"
from __future__ import annotations

import triton
import triton.language as tl

from longspan.kernels.linear.triton_rows import load_x
from longspan.kernels.quantized_linear.read_laid_out import (
    brought_near,
    lane_words,
    load_factors,
    load_laid_out,
)
from longspan.kernels.quantized_linear.triton_cores import (
    numbers_of,
    pairs_of_x,
    result_factor,
    sum_of_products,
    whole_products,
)


@triton.jit
def _load_tiles(
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    first_row,
    outputs,
    start,
    stride_zeros,
    ROW_WORDS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """DEPTH tiles of all rows: words [lines, 4, 4], and scales and zero points [lines, 4]."""
    line = tl.arange(0, BLOCK // 2)
    all_words, all_scales, all_zeros = (), (), ()
    for part in tl.static_range(DEPTH):
        word = lane_words(start + part * BLOCK, BLOCK)
        inside = word < ROW_WORDS
        block = word // BLOCK_WORDS
        for r in tl.static_range(ROWS // 8):
            # Rows beyond the last repeat it: no mask but the columns'.
            row = tl.minimum(first_row + line % 8 * (ROWS // 8) + r, outputs - 1)[:, None]
            source = weight_ptr + (row * ROW_WORDS + word)[:, :, None] + tl.arange(0, 4)
            source = tl.max_contiguous(source, [1, 2, 4])
            # Read once a token; x, which all programs read, stays in the first cache.
            words = tl.load(source, mask=inside[:, :, None], other=0, eviction_policy="evict_first")
            source = scales_ptr + row * (ROW_WORDS // BLOCK_WORDS) + block
            source = tl.max_contiguous(source, [1, 2])
            all_words = all_words + (words,)
            all_scales = all_scales + (tl.load(source, mask=inside, other=0.0),)
            if zeros_ptr is not None:
                source = zeros_ptr + row * stride_zeros + block * BITS // 8
                source = tl.max_contiguous(source, [1, 2])
                all_zeros = all_zeros + (tl.load(source, mask=inside, other=0),)
    return all_words, all_scales, all_zeros


@triton.jit
def start_words(
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    first_row,
    outputs,
    stride_zeros,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The rows' first tiles, on the way; SCALED numbers share a scale."""
    NUMBERS: tl.constexpr = 32 // BITS  # of a word
    ROW_WORDS: tl.constexpr = (WIDTH + SCALED - 1) // SCALED * (SCALED // NUMBERS)
    return _load_tiles(
        weight_ptr, scales_ptr, zeros_ptr, first_row, outputs, 0, stride_zeros,
        ROW_WORDS, SCALED // NUMBERS, BITS, ROWS, BLOCK, DEPTH,
    )  # fmt: skip


@triton.jit
def _number(words, index: tl.constexpr, zero, BITS: tl.constexpr):
    """Number `index` of each word less its zero point, float32, without a conversion.

    The bits are set into the mantissa of 2 ** 23, which is taken off with the zero point.
    """
    field = (words >> (index * BITS)) & (2**BITS - 1)
    return (field | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + zero)


@triton.jit
def _load_pairs(
    x_ptr,
    norm_ptr,
    roots,
    y_ptr,
    word,
    unit: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
):
    """What a lane's numbers meet in x, on the two lanes of each place that hold it, else zeros.

    Eight numbers of x as four pairs: unit `unit` of the half that a lane holds.
    """
    BF16: tl.constexpr = y_ptr.dtype.element_ty == tl.bfloat16
    UNITS: tl.constexpr = 16 // BITS // 2  # of half of a lane's numbers
    row = (tl.arange(0, word.shape[0]) % 8)[:, None]
    holds = (row // 2 == tl.arange(0, 4)[None, :])[:, :, None]
    first = word * (32 // BITS) + (row % 2 * UNITS + unit) * 8
    column = tl.max_contiguous(first[:, :, None] + tl.arange(0, 4), [1, 2, 4])
    mask = holds & (column < WIDTH)
    low = load_x(x_ptr, norm_ptr, roots, y_ptr, column, mask, WIDTH, GROUPS)
    column = tl.max_contiguous(first[:, :, None] + 4 + tl.arange(0, 4), [1, 2, 4])
    mask = holds & (column < WIDTH)
    high = load_x(x_ptr, norm_ptr, roots, y_ptr, column, mask, WIDTH, GROUPS)
    return pairs_of_x(low, high, BITS, BF16)


@triton.jit
def _load_x_of_words(
    x_ptr,
    norm_ptr,
    roots,
    y_ptr,
    start,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
):
    """What a tile's numbers meet in x: pairs of 16 bits, or float32 for each number of a word."""
    x = ()
    word = lane_words(start, BLOCK)
    if TENSOR_CORES:
        for unit in tl.static_range(16 // BITS // 2):
            pairs = _load_pairs(x_ptr, norm_ptr, roots, y_ptr, word, unit, WIDTH, GROUPS, BITS)
            x = x + (pairs,)
    else:
        for i in tl.static_range(32 // BITS):
            column = (word[:, :, None] + tl.arange(0, 4)) * (32 // BITS) + i
            each = load_x(x_ptr, norm_ptr, roots, y_ptr, column, column < WIDTH, WIDTH, GROUPS)
            x = x + (each.to(tl.float32),)
    return x


@triton.jit
def _by_float32(words, x, zero, BITS: tl.constexpr):
    """The same of words, and x in float32."""
    less = zero.to(tl.float32)[:, :, None]
    product = _number(words, 0, less, BITS) * x[0]
    for i in tl.static_range(1, 32 // BITS):
        product += _number(words, i, less, BITS) * x[i]
    return tl.sum(product, axis=2)


@triton.jit
def multiply_words(
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    ahead,
    x_ptr,
    sums_ptr,
    squares_ptr,
    norm_ptr,
    roots,
    y_ptr,
    first_row,
    outputs,
    stride_x,
    stride_zeros,
    X_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
):
    """The rows, begun by `start_words`, times each of X_ROWS of x: float32 [ROWS] for each.

    With sums x is one row that is `laid_out`, in words.
    """
    NUMBERS: tl.constexpr = 32 // BITS
    BLOCK_WORDS: tl.constexpr = SCALED // NUMBERS
    ROW_WORDS: tl.constexpr = (WIDTH + SCALED - 1) // SCALED * BLOCK_WORDS
    BF16: tl.constexpr = y_ptr.dtype.element_ty == tl.bfloat16
    STEP: tl.constexpr = DEPTH * BLOCK
    R: tl.constexpr = ROWS // 8
    totals = ()
    for _ in tl.static_range(X_ROWS * R):
        totals = totals + (tl.zeros([BLOCK // 2, 4], dtype=tl.float32),)
    for start in range(0, ROW_WORDS, STEP):
        all_words, all_scales, all_zeros = ahead
        if ROW_WORDS > STEP:
            ahead = _load_tiles(
                weight_ptr, scales_ptr, zeros_ptr, first_row, outputs, start + STEP, stride_zeros,
                ROW_WORDS, BLOCK_WORDS, BITS, ROWS, BLOCK, DEPTH,
            )  # fmt: skip
        if sums_ptr is not None:
            near = brought_near(
                x_ptr, sums_ptr, squares_ptr, start, outputs, WIDTH, PARTS, BITS, BLOCK, DEPTH
            )
        for part in tl.static_range(DEPTH):
            tile = start + part * BLOCK
            word = lane_words(tile, BLOCK)
            x, xs = (), ()
            if sums_ptr is not None:
                for unit in tl.static_range(16 // BITS // 2):
                    x = x + (load_laid_out(x_ptr, tile, near, unit, WIDTH, BITS, BLOCK),)
                factors = load_factors(sums_ptr, tile, near, WIDTH, BITS, BLOCK)
            else:
                for x_row in tl.static_range(X_ROWS):
                    of_row = _load_x_of_words(
                        x_ptr + x_row * stride_x, norm_ptr, roots, y_ptr, tile,
                        WIDTH, GROUPS, BITS, BLOCK, TENSOR_CORES,
                    )  # fmt: skip
                    xs = xs + (of_row,)
            zero = tl.full([BLOCK // 2, 4], 2 ** (BITS - 1), tl.int32)
            after = ()
            for r in tl.static_range(R):
                words = all_words[part * R + r]
                scale = all_scales[part * R + r].to(tl.float32)
                if zeros_ptr is not None:
                    zero = all_zeros[part * R + r].to(tl.int32)
                    if BITS == 4:
                        zero = (zero >> (word // BLOCK_WORDS % 2 * 4)) & 15
                if sums_ptr is not None:
                    # Two rows at once, of which the second is the next turn's.
                    if r % 2 == 0:
                        other = words
                        if R > 1:
                            other = all_words[part * R + r + 1]
                        even, odd, sums = whole_products(words, other, x, factors, BITS)
                elif TENSOR_CORES:
                    numbers = numbers_of(words, zero, BITS, BF16)
                for x_row in tl.static_range(X_ROWS):
                    if sums_ptr is not None:
                        product = (even if r % 2 == 0 else odd) - zero.to(tl.float32) * sums
                    elif TENSOR_CORES:
                        product = sum_of_products(numbers, xs[x_row], BITS, BF16)
                    else:
                        product = _by_float32(words, xs[x_row], zero, BITS)
                    after = after + (totals[r * X_ROWS + x_row] + product * scale,)
            totals = after
    factor = 1.0
    if TENSOR_CORES and sums_ptr is None:
        factor = result_factor(BF16)
    results = ()
    for x_row in tl.static_range(X_ROWS):
        lines = tl.sum(totals[x_row], axis=1)
        if R == 2:
            lines = tl.join(lines, tl.sum(totals[X_ROWS + x_row], axis=1))
        elif R > 2:
            tl.static_assert(R == 4, "a lane has 1, 2 or 4 rows")
            even = tl.join(lines, tl.sum(totals[2 * X_ROWS + x_row], axis=1))
            odd = tl.sum(totals[X_ROWS + x_row], axis=1)
            lines = tl.join(even, tl.join(odd, tl.sum(totals[3 * X_ROWS + x_row], axis=1)))
        results = results + (factor * tl.sum(tl.reshape(lines, [BLOCK // 16, ROWS]), axis=0),)
    return results
