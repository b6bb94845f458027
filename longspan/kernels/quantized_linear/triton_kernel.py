"""Linear layer of 8 or 4 bits in Triton: few rows from packed bytes, many by a scratch matrix.

Of up to `STEP_ROWS` rows of x a program owns a few outputs and walks the whole of their rows of the
weight once, in words of 32 bits. Of more rows the matrix is dequantised, in parts, and cuBLAS
multiplies.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.deferred_norm import DeferredNorm
from longspan.kernels.dequantize.triton_kernel import dequantize
from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.linear.triton_product import as_matrix, finish_product, start_product
from longspan.kernels.linear.triton_root import inverse_root, parts_of
from longspan.kernels.quantized_linear.laid_out import in_words
from longspan.kernels.quantized_linear.scratch import scratch_parts
from longspan.kernels.rows import as_rows

# Rows of x that the packed bytes are read for directly.
STEP_ROWS = 8


@triton.jit(do_not_specialize=["outputs"])
def _quantized_linear(
    x_ptr,
    sums_ptr,
    squares_ptr,
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    y_ptr,
    outputs,
    eps,
    stride_x,
    stride_weight,
    stride_zeros,
    X_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
    DTYPE: tl.constexpr,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DEPTH: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    first = tl.program_id(0).to(tl.int64) * ROWS
    started = start_product(
        weight_ptr, scales_ptr, zeros_ptr, first, outputs, stride_weight, stride_zeros,
        WIDTH, BITS, SCALED, ROWS, BLOCK, DEPTH,
    )  # fmt: skip
    # Weights do not depend on the launch before, x does.
    wait_for_last_launch(OVERLAP)

    root = inverse_root(squares_ptr, eps, WIDTH, PARTS, LANES)
    results = finish_product(
        started, weight_ptr, scales_ptr, zeros_ptr, x_ptr, sums_ptr, squares_ptr, None, None, x_ptr,
        first, outputs, stride_x, stride_zeros,
        X_ROWS, WIDTH, PARTS, 1, BITS, SCALED, ROWS, BLOCK, NEIGHBOURS, DEPTH, TENSOR_CORES,
    )  # fmt: skip
    output = first + tl.arange(0, ROWS)
    real = output < outputs
    for x_row in tl.static_range(X_ROWS):
        y = results[x_row] * root
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + output, mask=real, other=0.0)
            y += bias.to(DTYPE).to(tl.float32)
        y_row = y_ptr + x_row * outputs.to(tl.int64)
        tl.store(y_row + output, y.to(DTYPE).to(y_ptr.dtype.element_ty), mask=real)


def quantized_linear(
    x: torch.Tensor | DeferredNorm,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    bits: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `longspan.kernels.quantized_linear.quantized_linear`."""
    norm, row = (x, x.row) if isinstance(x, DeferredNorm) else (None, x)
    outputs, width = weight.shape[0], row.shape[-1]
    if row.shape[:-1].numel() > STEP_ROWS:
        result = _by_scratch(row, weight, scales, zeros, bias, bits)
        return result if out is None else out.copy_(result)
    overlap = overlap_options(row, weight, scales, zeros)
    squares, sums = (None, None) if norm is None else (norm.squares, norm.sums)
    flat = as_rows(row)
    matrix = as_matrix(
        weight, scales, zeros, bits=bits, width=width, dtype=row.dtype, depth=1,
        x_rows=flat.shape[0], laid_out=sums is not None,
    )  # fmt: skip
    y = out
    if y is None:
        y = torch.empty(*row.shape[:-1], outputs, dtype=row.dtype, device=row.device)
    _quantized_linear[(matrix.programs,)](
        flat if sums is None else in_words(flat),
        sums,
        squares,
        matrix.weight,
        matrix.scales,
        matrix.zeros,
        None if bias is None else bias.contiguous(),
        y,
        outputs,
        0.0 if norm is None else norm.eps,
        flat.stride(0),
        *matrix.strides,
        X_ROWS=flat.shape[0],
        DTYPE=getattr(tl, str(row.dtype).removeprefix("torch.")),
        **parts_of(squares),
        **matrix.options,
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
