"""A program's rows of a matrix times one vector: of floating point, or of 8 or 4 bits.

    rows = start_product(...)     # before the program waits for x: weights depend on nothing
    y = finish_product(rows, ...)

What fuses something with a linear layer has both around it.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from longspan.kernels.linear.triton_rows import multiply_rows, row_block, start_rows
from longspan.kernels.quantized_linear.blocks import word_block
from longspan.kernels.quantized_linear.laid_out import group_size, new_sums
from longspan.kernels.quantized_linear.triton_words import multiply_words, start_words

# Tensor cores multiply bfloat16 from here on.
TENSOR_CORES_SINCE = (8, 0)


@triton.jit
def start_product(
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    first_row,
    outputs,
    stride_weight,
    stride_zeros,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The first weights of ROWS rows from `first_row` on, on their way."""
    if BITS == 0:
        output = first_row + tl.arange(0, ROWS)
        started = start_rows(weight_ptr, output, outputs, stride_weight, WIDTH, BLOCK, DEPTH)
    else:
        started = start_words(
            weight_ptr, scales_ptr, zeros_ptr, first_row, outputs, stride_zeros,
            WIDTH, BITS, SCALED, ROWS, BLOCK, DEPTH,
        )  # fmt: skip
    return started


@triton.jit
def finish_product(
    started,
    weight_ptr,
    scales_ptr,
    zeros_ptr,
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
    NEIGHBOURS: tl.constexpr,
    DEPTH: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
):
    """The rows that `start_product` began times x, as `load_x` gives it: float32 [ROWS].

    Of packed numbers X_ROWS rows of x, stride_x apart; a result for each, in a tuple. With sums x
    is one row that is `laid_out`, and the PARTS `squares` of its norm are brought near with it.
    """
    if BITS == 0:
        tl.static_assert(X_ROWS == 1, "a matrix of floating point meets one row")
        rows_ptr, ahead = started
        product = multiply_rows(
            rows_ptr, ahead, x_ptr, norm_ptr, roots, y_ptr,
            WIDTH, GROUPS, ROWS, BLOCK, NEIGHBOURS, DEPTH,
        )  # fmt: skip
        y = (product,)
    else:
        y = multiply_words(
            weight_ptr, scales_ptr, zeros_ptr, started, x_ptr, sums_ptr, squares_ptr, norm_ptr,
            roots, y_ptr, first_row, outputs, stride_x, stride_zeros,
            X_ROWS, WIDTH, PARTS, GROUPS, BITS, SCALED, ROWS, BLOCK, DEPTH, TENSOR_CORES,
        )  # fmt: skip
    return y


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix as the kernels read it.

    Attributes:
        weight: float [O, D] or int32 [O, words].
        scales: of the words' blocks, or None.
        zeros: likewise.
        outputs: O.
        strides: of the rows of weight and zeros.
        options: constants of a launch.
    """

    weight: torch.Tensor
    scales: torch.Tensor | None
    zeros: torch.Tensor | None
    outputs: int
    strides: tuple[int, int]
    options: dict[str, Any]

    @property
    def programs(self) -> int:
        """Programs of a launch."""
        return -(-self.outputs // int(self.options["ROWS"]))


def as_matrix(
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    zeros: torch.Tensor | None,
    *,
    bits: int | None,
    width: int,
    dtype: torch.dtype,
    depth: int,
    x_rows: int = 1,
    laid_out: bool = False,
) -> Matrix:
    """What the two helpers take of a matrix.

    Args:
        weight: float [O, D], or uint8 [O, blocks, bytes of a block].
        scales: of the blocks, or None.
        zeros: likewise, or None.
        bits: of a number, or None for floating point.
        width: D.
        dtype: of y, which x is rounded to.
        depth: blocks of floating point that are loaded ahead.
        x_rows: rows of x that a launch multiplies with packed numbers.
        laid_out: whether x is one row that is `laid_out`.
    """
    outputs = weight.shape[0]
    if bits is None:
        weight = weight if weight.stride(1) == 1 else weight.contiguous()
        options = row_block(outputs, width, weight.element_size(), depth=depth)
        constants = {"BITS": 0, "SCALED": 0, "TENSOR_CORES": False}
        return Matrix(
            weight=weight, scales=None, zeros=None, outputs=outputs,
            strides=(weight.stride(0), 0), options={"WIDTH": width, **options, **constants},
        )  # fmt: skip
    assert scales is not None, "packed weights have scales"
    scaled = weight.shape[2] * 8 // bits
    words = weight.contiguous().view(torch.int32).view(outputs, -1)
    zeros = None if zeros is None else zeros.contiguous()
    constants = {
        "BITS": bits,
        "SCALED": scaled,
        "TENSOR_CORES": _has_tensor_cores(words, dtype),
        "NEIGHBOURS": 4,
    }
    options = word_block(outputs, words.shape[1], x_rows, laid_out=laid_out)
    return Matrix(
        weight=words, scales=scales.contiguous(), zeros=zeros, outputs=outputs,
        strides=(words.stride(0), 0 if zeros is None else zeros.stride(0)),
        options={"WIDTH": width, **options, **constants},
    )  # fmt: skip


def reads_laid_out(matrix: torch.Tensor | None, bits: int | None, x: torch.Tensor) -> bool:
    """Whether products of a packed matrix with a row like x [B, L, D] read it `laid_out`.

    Args:
        matrix: uint8 [O, blocks, bytes of a block], or None for none that is packed.
        bits: of its numbers.
        x: whose dtype and width the row has.
    """
    if matrix is None or bits is None or x.dtype != torch.bfloat16 or not matrix.is_contiguous():
        return False
    # A lane's four words have all their numbers, or none.
    return x.shape[-1] % (4 * 32 // bits) == 0 and _has_tensor_cores(matrix, x.dtype)


def sums_of(
    matrix: torch.Tensor | None, bits: int | None, row: torch.Tensor, *written: int
) -> torch.Tensor | None:
    """Room for the sums of a row that is to be laid out for a matrix; None for a plain row.

    Args:
        matrix: that will read it, see `reads_laid_out`.
        bits: of its numbers.
        row: to be filled, [B, L, D].
        written: numbers of it that a program writes at once, each a whole number of groups.
    """
    if bits is None or not reads_laid_out(matrix, bits, row):
        return None
    return None if any(each % group_size(bits) for each in written) else new_sums(row, bits)


def _has_tensor_cores(words: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether tensor cores multiply x of `dtype` with the words.

    Words that do not lie at a multiple of 16 bytes would lie otherwise in a program's registers.
    """
    if not words.is_cuda or dtype not in (torch.bfloat16, torch.float16):
        return False
    capable = torch.cuda.get_device_capability(words.device) >= TENSOR_CORES_SINCE
    return capable and words.data_ptr() % 16 == 0
