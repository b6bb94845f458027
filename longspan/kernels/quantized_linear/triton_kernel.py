"""Linear layer of 8 or 4 bits in Triton: few rows from packed bytes, many by a scratch matrix.

Of up to `STEP_ROWS` rows of x a program owns a few outputs and walks the whole of their rows of the
weight, in words of 32 bits: the numbers of a word are taken out in registers, multiplied with what
they meet in x, and added up before the word's scale is applied once. The next block of words is on
its way meanwhile. Of more rows the matrix is dequantised, in parts, and cuBLAS multiplies.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations; its tuples grow.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.dequantize.triton_kernel import dequantize, load_zeros
from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.quantized_linear.scratch import scratch_parts
from longspan.kernels.rows import as_rows

# Rows of x that the packed bytes are read for directly.
STEP_ROWS = 8
# Programs enough for two on each multiprocessor of a large GPU.
MIN_PROGRAMS = 256
# Words of a block of one row: one for each thread of two warps.
WORDS = 64


@triton.jit
def _load_words(rows_ptr, start, WIDTH: tl.constexpr, WORDS: tl.constexpr):
    word = start + tl.arange(0, WORDS)[None, :]
    # A word a thread, as the numbers of x that it meets are a thread's: nothing changes threads.
    # So no more than a word is said to lie together.
    words_ptr = tl.multiple_of(rows_ptr + word, [4, 4])
    # Read once a token; x, which all programs read, stays in the first cache.
    return tl.load(words_ptr, mask=word < WIDTH, other=0, eviction_policy="evict_first")


@triton.jit
def _load_x(row_ptr, word, WIDTH: tl.constexpr, BITS: tl.constexpr):
    """What the numbers of each word meet, in their order, and the sum of it; float32."""
    NUMBERS: tl.constexpr = 32 // BITS
    column = word[:, None] * NUMBERS + tl.arange(0, NUMBERS)[None, :]
    x = tl.load(row_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, [x.shape[0], NUMBERS // 2, 2]))
    x0, x2 = tl.split(tl.reshape(even, [x.shape[0], NUMBERS // 4, 2]))
    x1, x3 = tl.split(tl.reshape(odd, [x.shape[0], NUMBERS // 4, 2]))
    if BITS == 8:
        parts = (
            tl.reshape(x0, [x.shape[0]]),
            tl.reshape(x1, [x.shape[0]]),
            tl.reshape(x2, [x.shape[0]]),
            tl.reshape(x3, [x.shape[0]]),
        )
    else:
        x0, x4 = tl.split(x0)
        x1, x5 = tl.split(x1)
        x2, x6 = tl.split(x2)
        x3, x7 = tl.split(x3)
        parts = (x0, x1, x2, x3, x4, x5, x6, x7)
    total = parts[0]
    for i in tl.static_range(1, NUMBERS):
        total += parts[i]
    return parts, total


@triton.jit
def _number(words, index: tl.constexpr, BITS: tl.constexpr):
    """Number `index` of each word times 2 ** (index BITS % 16), float32, without a conversion.

    The bits are set into the mantissa of 2 ** 23, which is then taken off.
    """
    if index * BITS >= 16:
        words = words >> 16
    field = words & ((2**BITS - 1) << (index * BITS % 16))
    return (field | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit(do_not_specialize=["outputs"])
def _quantized_linear(
    x_ptr,
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    y_ptr,
    outputs,
    stride_x,
    stride_zeros,
    WIDTH: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    X_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    NUMBERS: tl.constexpr = 32 // BITS  # of a word
    BLOCK_WORDS: tl.constexpr = BLOCK // NUMBERS
    BLOCKS: tl.constexpr = ROW_WORDS // BLOCK_WORDS
    output = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    # Rows beyond the last repeat it: no mask but the columns'.
    row = tl.minimum(output, outputs - 1)[:, None]
    rows_ptr = weight_ptr + row * ROW_WORDS
    ahead = ()
    for part in tl.static_range(DEPTH):
        ahead = ahead + (_load_words(rows_ptr, part * WORDS, ROW_WORDS, WORDS),)
    # Weights do not depend on the launch before, x does.
    wait_for_last_launch(OVERLAP)

    totals = ()
    for _ in tl.static_range(X_ROWS):
        totals = totals + (tl.zeros([ROWS, WORDS], dtype=tl.float32),)
    for start in range(0, ROW_WORDS, WORDS):
        word = start + tl.arange(0, WORDS)
        inside = (word < ROW_WORDS)[None, :]
        block = (word // BLOCK_WORDS)[None, :]
        scale = tl.load(scales_ptr + row * BLOCKS + block, mask=inside, other=0.0).to(tl.float32)
        zero = load_zeros(zeros_ptr, row, block, stride_zeros, inside, BITS)
        words = ahead[0]
        ahead = ahead[1:] + (_load_words(rows_ptr, start + DEPTH * WORDS, ROW_WORDS, WORDS),)
        after = ()
        for x_row in tl.static_range(X_ROWS):
            parts, x_sum = _load_x(x_ptr + x_row * stride_x, word, WIDTH, BITS)
            # scale (sum of q x - zero sum of x): the second sum is one for all outputs.
            products = -zero * x_sum[None, :]
            for i in tl.static_range(NUMBERS):
                x = parts[i] * 2.0 ** -(i * BITS % 16)
                products += _number(words, i, BITS) * x[None, :]
            after = after + (totals[x_row] + scale * products,)
        totals = after

    real = output < outputs
    for x_row in tl.static_range(X_ROWS):
        y = tl.sum(totals[x_row], axis=1)
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + output, mask=real, other=0.0)
            y += bias.to(x_ptr.dtype.element_ty).to(tl.float32)
        y_row = y_ptr + x_row * outputs.to(tl.int64)
        tl.store(y_row + output, y.to(y_ptr.dtype.element_ty), mask=real)


def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    bits: int,
) -> torch.Tensor:
    """See `longspan.kernels.quantized_linear.quantized_linear`."""
    outputs, width = weight.shape[0], x.shape[-1]
    if x.shape[:-1].numel() > STEP_ROWS:
        return _by_scratch(x, weight, scales, zeros, bias, bits)
    overlap = overlap_options(x, weight)
    flat = as_rows(x)
    words = weight.contiguous().view(torch.int32).view(outputs, -1)
    zeros = None if zeros is None else zeros.contiguous()
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    block = row_block(outputs, flat.shape[0])
    _quantized_linear[(triton.cdiv(outputs, block["ROWS"]),)](
        flat,
        words,
        scales.contiguous(),
        zeros,
        None if bias is None else bias.contiguous(),
        y,
        outputs,
        flat.stride(0),
        0 if zeros is None else zeros.stride(0),
        WIDTH=width,
        ROW_WORDS=words.shape[1],
        BITS=bits,
        BLOCK=weight.shape[2] * 8 // bits,
        X_ROWS=flat.shape[0],
        **block,
        **overlap,
    )
    return y


def _by_scratch(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
) -> torch.Tensor:
    """Dequantise so many outputs at once as the scratch holds, and multiply."""
    outputs, width = weight.shape[0], x.shape[-1]
    flat = x.reshape(-1, width)
    y = torch.empty(flat.shape[0], outputs, dtype=x.dtype, device=x.device)
    for part in scratch_parts(outputs, width):
        W = dequantize(
            weight[part], scales[part], None if zeros is None else zeros[part],
            bits=bits, width=width, dtype=x.dtype, rows=None,
        )  # fmt: skip
        torch.mm(flat, W.T, out=y[:, part])
        # Before the next one is made: there is never a second.
        del W
    if bias is not None:
        y += bias.to(x.dtype)
    return y.view(*x.shape[:-1], outputs)


def row_block(outputs: int, x_rows: int) -> dict[str, int]:
    """Outputs of a program, words of a row at once, blocks ahead, warps."""
    rows = 8 if x_rows <= 4 else 4
    while rows > 1 and triton.cdiv(outputs, rows) < MIN_PROGRAMS:
        rows //= 2
    return {"ROWS": rows, "WORDS": WORDS, "DEPTH": 2, "num_warps": 2}
