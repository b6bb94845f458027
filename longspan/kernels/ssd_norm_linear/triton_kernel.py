"""The state-space dual, gated norm and linear layer of one token in two launches.

The dual's launch, which has y in registers, gates it, leaves the squares' sums beside it, and has
its row multiplied by the norm's weight: the product's sums are divided by the root. Of several
groups, which have a root each, and in float16 the product's programs normalise what they multiply.
They own a part of the residual, too, where its sum and the next norm are asked for. Of more tokens
the ops run one after another.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations; its tuples grow.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,misc"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from longspan.kernels.deferred_norm import DTYPES, Added, DeferredNorm, NextNorm
from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.linear.triton_product import (
    Matrix,
    as_matrix,
    finish_product,
    start_product,
    sums_of,
)
from longspan.kernels.linear.triton_root import inverse_root, parts_of
from longspan.kernels.quantized_linear.laid_out import in_words, store_laid_out
from longspan.kernels.ssd.triton_kernel import scan_few_tokens, token_width
from longspan.kernels.ssd_norm_linear.reference import ssd_norm_linear as one_after_another


@triton.jit
def _roots(squares, eps, WIDTH: tl.constexpr, GROUPS: tl.constexpr):
    """1 / root of each group's mean square, of the squares [at least GROUPS, parts]."""
    group = tl.arange(0, squares.shape[0])
    of_groups = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / (WIDTH // GROUPS) + eps)
    roots = ()
    for each in tl.static_range(GROUPS):
        roots = roots + (tl.sum(tl.where(group == each, of_groups, 0.0)),)
    return roots


@triton.jit
def _norm_linear(
    x_ptr,
    sums_ptr,
    squares_ptr,
    norm_ptr,
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    residual_ptr,
    next_norm_ptr,
    next_squares_ptr,
    next_sums_ptr,
    y_ptr,
    outputs,
    eps,
    stride_weight,
    stride_zeros,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
    PART_BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DEPTH: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    NEXT_BITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    first = tl.program_id(0).to(tl.int64) * ROWS
    output = first + tl.arange(0, ROWS)
    real = output < outputs
    started = start_product(
        weight_ptr, scales_ptr, zeros_ptr, first, outputs, stride_weight, stride_zeros,
        WIDTH, BITS, SCALED, ROWS, BLOCK, DEPTH,
    )  # fmt: skip
    if residual_ptr is not None:
        next_norm = tl.load(next_norm_ptr + output, mask=real, other=0.0).to(tl.float32)
    wait_for_last_launch(OVERLAP)

    if residual_ptr is not None:
        residual = tl.load(residual_ptr + output, mask=real, other=0.0)
        # Otherwise the compiler asks for it when the product is done.
        tl.debug_barrier()
    if norm_ptr is not None:
        group = tl.arange(0, GROUP_BLOCK)[:, None]
        part = tl.arange(0, PART_BLOCK)[None, :]
        real_part = (group < GROUPS) & (part < PARTS // GROUPS)
        source = squares_ptr + group * (PARTS // GROUPS) + part
        squares = tl.load(source, mask=real_part, other=0.0)
        roots = _roots(squares, eps, WIDTH, GROUPS)
    else:
        root, roots = inverse_root(squares_ptr, eps, WIDTH, PARTS, LANES), None
    y = finish_product(
        started, weight_ptr, scales_ptr, zeros_ptr, x_ptr, sums_ptr, squares_ptr, norm_ptr, roots,
        y_ptr, first, outputs, 0, stride_zeros,
        1, WIDTH, PARTS, GROUPS, BITS, SCALED, ROWS, BLOCK, NEIGHBOURS, DEPTH, TENSOR_CORES,
    )[0]  # fmt: skip
    if norm_ptr is None:
        y *= root
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + output, mask=real, other=0.0)
        y += bias.to(y_ptr.dtype.element_ty).to(tl.float32)
    if residual_ptr is not None:
        # As it would be rounded on its way to the sum.
        y = y.to(y_ptr.dtype.element_ty).to(tl.float32)
        total = tl.where(real, residual.to(tl.float32) + y, 0.0).to(residual.dtype)
        y = total.to(tl.float32) * next_norm
        total_squares = tl.sum(total.to(tl.float32) * total.to(tl.float32))
        tl.store(next_squares_ptr + tl.program_id(0), total_squares)
        # Warps share outputs: none stores before all have loaded.
        tl.debug_barrier()
        tl.store(residual_ptr + output, total, mask=real)
    if next_sums_ptr is not None:
        store_laid_out(y_ptr, next_sums_ptr, y, first, outputs, NEXT_BITS)
    else:
        tl.store(y_ptr + output, y.to(y_ptr.dtype.element_ty), mask=real)


def ssd_norm_linear(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    z: torch.Tensor,
    norm_weight: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    eps: float,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_limit: tuple[float, float],
    state: torch.Tensor,
    scales: torch.Tensor | None,
    zeros: torch.Tensor | None,
    bits: int | None,
    then: NextNorm | None = None,
) -> tuple[torch.Tensor | Added, torch.Tensor]:
    """See `longspan.kernels.ssd_norm_linear.ssd_norm_linear`."""
    dual: dict[str, Any] = {"D": D, "dt_bias": dt_bias, "dt_limit": dt_limit, "state": state}
    if x.shape[:2].numel() != 1:
        return one_after_another(
            x, dt, A, B, C, z, norm_weight, weight, bias,
            eps=eps, scales=scales, zeros=zeros, bits=bits, then=then, **dual,
        )  # fmt: skip
    outputs, width, groups = weight.shape[0], z.shape[2], B.shape[2]
    deferred = groups == 1 and x.dtype in DTYPES
    overlap = overlap_options(x, weight, scales, zeros, None if then is None else then.weight)
    written = state.shape[3], token_width(*state.shape[2:])
    sums = sums_of(weight, bits, z, *written) if deferred else None
    laid = sums is not None
    matrix = as_matrix(
        weight, scales, zeros, bits=bits, width=width, dtype=x.dtype, depth=1, laid_out=laid
    )
    gated, squares, new_state = scan_few_tokens(
        x, dt, A, B, C, z=z, norm_weight=norm_weight if deferred else None, sums=sums,
        bits=bits if laid else None, **dual,
    )  # fmt: skip
    assert squares is not None, "a gate was given"
    y = torch.empty(*x.shape[:2], outputs, dtype=x.dtype, device=x.device)
    added = None if then is None else _room(then, y, matrix)
    total, norm = added or (None, None)
    next_sums = None if norm is None else norm.sums
    _norm_linear[(matrix.programs,)](
        in_words(gated) if laid else gated,
        sums,
        squares,
        None if deferred else norm_weight.contiguous(),
        matrix.weight,
        matrix.scales,
        matrix.zeros,
        None if bias is None else bias.contiguous(),
        total,
        None if then is None else then.weight.contiguous(),
        None if norm is None else norm.squares,
        next_sums,
        y,
        outputs,
        eps,
        *matrix.strides,
        GROUPS=groups,
        GROUP_BLOCK=triton.next_power_of_2(groups),
        PART_BLOCK=triton.next_power_of_2(squares.numel() // groups),
        NEXT_BITS=0 if then is None or next_sums is None else then.bits,
        **parts_of(squares),
        **matrix.options,
        **overlap,
    )
    return y if added is None else added, new_state


def _room(then: NextNorm, y: torch.Tensor, matrix: Matrix) -> Added:
    """The residual, in whose place the sum comes, and its norm, whose row is y; to be filled."""
    sums = sums_of(then.matrix, then.bits, y, int(matrix.options["ROWS"]))
    squares = torch.empty(1, 1, matrix.programs, dtype=torch.float32, device=y.device)
    norm = DeferredNorm(row=y, squares=squares, eps=then.eps, sums=sums)
    return then.residual.contiguous(), norm
