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

from longspan.kernels.dequantize.triton_kernel import dequantize
from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.linear.triton_product import as_matrix, finish_product, start_product
from longspan.kernels.quantized_linear.scratch import scratch_parts
from longspan.kernels.rows import as_rows

# Rows of x that the packed bytes are read for directly.
STEP_ROWS = 8


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
    stride_weight,
    stride_zeros,
    X_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
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

    results = finish_product(
        started, weight_ptr, scales_ptr, zeros_ptr, x_ptr, None, None, None, x_ptr,
        first, outputs, stride_x, stride_zeros,
        X_ROWS, WIDTH, 1, BITS, SCALED, ROWS, BLOCK, NEIGHBOURS, DEPTH, TENSOR_CORES,
    )  # fmt: skip
    output = first + tl.arange(0, ROWS)
    real = output < outputs
    for x_row in tl.static_range(X_ROWS):
        y = results[x_row]
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + output, mask=real, other=0.0)
            y += bias.to(x_ptr.dtype.element_ty).to(tl.float32)
        y_row = y_ptr + x_row * outputs.to(tl.int64)
        y = y.to(x_ptr.dtype.element_ty).to(y_ptr.dtype.element_ty)
        tl.store(y_row + output, y, mask=real)


def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    bits: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `longspan.kernels.quantized_linear.quantized_linear`."""
    outputs, width = weight.shape[0], x.shape[-1]
    if x.shape[:-1].numel() > STEP_ROWS:
        result = _by_scratch(x, weight, scales, zeros, bias, bits)
        return result if out is None else out.copy_(result)
    overlap = overlap_options(x, weight, scales, zeros)
    flat = as_rows(x)
    matrix = as_matrix(
        weight, scales, zeros,
        bits=bits, width=width, dtype=x.dtype, depth=1, x_rows=flat.shape[0],
    )  # fmt: skip
    y = out
    if y is None:
        y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    _quantized_linear[(matrix.programs,)](
        flat,
        matrix.weight,
        matrix.scales,
        matrix.zeros,
        None if bias is None else bias.contiguous(),
        y,
        outputs,
        flat.stride(0),
        *matrix.strides,
        X_ROWS=flat.shape[0],
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
