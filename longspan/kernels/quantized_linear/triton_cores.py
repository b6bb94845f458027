"""The steps of `tensor_cores` in Triton, for blocks [lines, 4, 4]: a lane has four words."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from longspan.kernels.quantized_linear import tensor_cores

_PAIRS_OF_4_BITS_BF16 = tl.constexpr(tensor_cores.PAIRS_OF_4_BITS_BF16)
_PAIRS_OF_4_BITS_F16 = tl.constexpr(tensor_cores.PAIRS_OF_4_BITS_F16)
_PAIRS_OF_8_BITS_BF16 = tl.constexpr(tensor_cores.PAIRS_OF_8_BITS_BF16)
_PAIRS_OF_8_BITS_F16 = tl.constexpr(tensor_cores.PAIRS_OF_8_BITS_F16)
_NUMBERS_OF_4_BITS_BF16 = tl.constexpr(tensor_cores.NUMBERS_OF_4_BITS_BF16)
_NUMBERS_OF_4_BITS_F16 = tl.constexpr(tensor_cores.NUMBERS_OF_4_BITS_F16)
_NUMBERS_OF_8_BITS_BF16 = tl.constexpr(tensor_cores.NUMBERS_OF_8_BITS_BF16)
_NUMBERS_OF_8_BITS_F16 = tl.constexpr(tensor_cores.NUMBERS_OF_8_BITS_F16)
_WHOLE_PRODUCTS_OF_4_BITS = tl.constexpr(tensor_cores.WHOLE_PRODUCTS_OF_4_BITS)
_WHOLE_PRODUCTS_OF_8_BITS = tl.constexpr(tensor_cores.WHOLE_PRODUCTS_OF_8_BITS)
_PRODUCTS_OF_4_BITS_BF16 = tl.constexpr(tensor_cores.PRODUCTS_OF_4_BITS_BF16)
_PRODUCTS_OF_4_BITS_F16 = tl.constexpr(tensor_cores.PRODUCTS_OF_4_BITS_F16)
_PRODUCTS_OF_8_BITS_BF16 = tl.constexpr(tensor_cores.PRODUCTS_OF_8_BITS_BF16)
_PRODUCTS_OF_8_BITS_F16 = tl.constexpr(tensor_cores.PRODUCTS_OF_8_BITS_F16)
_PAIRS_OPERANDS = tl.constexpr(tensor_cores.PAIRS_OPERANDS)
_NUMBERS_OPERANDS_OF_4_BITS = tl.constexpr(tensor_cores.NUMBERS_OPERANDS_OF_4_BITS)
_NUMBERS_OPERANDS_OF_8_BITS = tl.constexpr(tensor_cores.NUMBERS_OPERANDS_OF_8_BITS)
_WHOLE_PRODUCTS_OPERANDS_OF_4_BITS = tl.constexpr(tensor_cores.WHOLE_PRODUCTS_OPERANDS_OF_4_BITS)
_WHOLE_PRODUCTS_OPERANDS_OF_8_BITS = tl.constexpr(tensor_cores.WHOLE_PRODUCTS_OPERANDS_OF_8_BITS)
_PRODUCTS_OPERANDS_OF_4_BITS = tl.constexpr(tensor_cores.PRODUCTS_OPERANDS_OF_4_BITS)
_PRODUCTS_OPERANDS_OF_8_BITS = tl.constexpr(tensor_cores.PRODUCTS_OPERANDS_OF_8_BITS)
_RESULT_FACTOR_BF16 = tl.constexpr(tensor_cores.RESULT_FACTOR_BF16)
_RESULT_FACTOR_F16 = tl.constexpr(tensor_cores.RESULT_FACTOR_F16)


@triton.jit
def pairs_of_x(low, high, BITS: tl.constexpr, BF16: tl.constexpr):
    """Eight numbers of x, in two fours, as four pairs."""
    if BITS == 4:
        pairs = tl.inline_asm_elementwise(
            _PAIRS_OF_4_BITS_BF16 if BF16 else _PAIRS_OF_4_BITS_F16,
            _PAIRS_OPERANDS, [low, high], tl.int32, True, 4,
        )  # fmt: skip
    else:
        pairs = tl.inline_asm_elementwise(
            _PAIRS_OF_8_BITS_BF16 if BF16 else _PAIRS_OF_8_BITS_F16,
            _PAIRS_OPERANDS, [low, high], tl.int32, True, 4,
        )  # fmt: skip
    return pairs


@triton.jit
def numbers_of(words, zero, BITS: tl.constexpr, BF16: tl.constexpr):
    """Each lane's numbers less their zero points, as pairs of 16 bits."""
    taken = ((zero * 0x00010001) | -0x7FFF8000)[:, :, None]
    if BITS == 4:
        more = ((zero * 0x00100010) | -0x7FFF8000)[:, :, None]
        numbers = tl.inline_asm_elementwise(
            _NUMBERS_OF_4_BITS_BF16 if BF16 else _NUMBERS_OF_4_BITS_F16,
            _NUMBERS_OPERANDS_OF_4_BITS, [words, taken, more],
            (tl.int32, tl.int32, tl.int32, tl.int32), True, 4,
        )  # fmt: skip
    else:
        numbers = tl.inline_asm_elementwise(
            _NUMBERS_OF_8_BITS_BF16 if BF16 else _NUMBERS_OF_8_BITS_F16,
            _NUMBERS_OPERANDS_OF_8_BITS, [words, taken], (tl.int32, tl.int32), True, 4,
        )  # fmt: skip
    return numbers


@triton.jit
def _own_sum(results):
    """A lane's sum, of its four results: float32 [lines, 4]."""
    even, odd = tl.split(tl.reshape(results, [results.shape[0], 4, 2, 2]))
    first, _ = tl.split(even)
    _, last = tl.split(odd)
    return first + last


@triton.jit
def sum_of_products(numbers, x, BITS: tl.constexpr, BF16: tl.constexpr):
    """The sum of each lane's numbers times x: float32 [lines, 4]."""
    if BITS == 4:
        results = tl.inline_asm_elementwise(
            _PRODUCTS_OF_4_BITS_BF16 if BF16 else _PRODUCTS_OF_4_BITS_F16,
            _PRODUCTS_OPERANDS_OF_4_BITS,
            [numbers[0], numbers[1], numbers[2], numbers[3], x[0], x[1]], tl.float32, True, 4,
        )  # fmt: skip
    else:
        results = tl.inline_asm_elementwise(
            _PRODUCTS_OF_8_BITS_BF16 if BF16 else _PRODUCTS_OF_8_BITS_F16,
            _PRODUCTS_OPERANDS_OF_8_BITS,
            [numbers[0], numbers[1], x[0]], tl.float32, True, 4,
        )  # fmt: skip
    return _own_sum(results)


@triton.jit
def whole_products(words, others, x, factors, BITS: tl.constexpr):
    """Each lane's numbers of two rows times x that is `laid_out`: float32 [lines, 4] of each row.

    With the sum of what the numbers meet in x.
    """
    if BITS == 4:
        results = tl.inline_asm_elementwise(
            _WHOLE_PRODUCTS_OF_4_BITS, _WHOLE_PRODUCTS_OPERANDS_OF_4_BITS,
            [words, others, x[0], x[1]], tl.int32, True, 4,
        )  # fmt: skip
    else:
        results = tl.inline_asm_elementwise(
            _WHOLE_PRODUCTS_OF_8_BITS, _WHOLE_PRODUCTS_OPERANDS_OF_8_BITS,
            [words, others, x[0]], tl.int32, True, 4,
        )  # fmt: skip
    units, sums = tl.split(tl.reshape(factors, [factors.shape[0], 4, 2, 2]))
    results = tl.reshape(results, [results.shape[0], 4, 2, 2]).to(tl.float32)
    first, second = tl.split(tl.sum(results * units[:, :, None, :], axis=3))
    return first, second, tl.sum(sums, axis=2)


@triton.jit
def result_factor(BF16: tl.constexpr):
    """What all these sums are to be multiplied with."""
    return _RESULT_FACTOR_BF16 if BF16 else _RESULT_FACTOR_F16
