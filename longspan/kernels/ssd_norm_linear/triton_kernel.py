"""The state-space dual, gated norm and linear layer of one token in two launches.

The dual's launch, which has y in registers, gates it and leaves the squares' sums beside it. The
product's programs begin with those, a few hundred numbers, and normalise what they multiply. Of
more tokens the ops run one after another.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations; its tuples grow.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,misc"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.linear.triton_product import as_matrix, finish_product, start_product
from longspan.kernels.ssd.triton_kernel import scan_few_tokens
from longspan.kernels.ssd_norm_linear.reference import ssd_norm_linear as one_after_another


@triton.jit
def _norm_linear(
    x_ptr,
    squares_ptr,
    norm_ptr,
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    y_ptr,
    outputs,
    eps,
    stride_weight,
    stride_zeros,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    PART_BLOCK: tl.constexpr,
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
    wait_for_last_launch(OVERLAP)

    group = tl.arange(0, GROUP_BLOCK)
    part = tl.arange(0, PART_BLOCK)[None, :]
    source = squares_ptr + group[:, None] * PARTS + part
    squares = tl.load(source, mask=(group < GROUPS)[:, None] & (part < PARTS), other=0.0)
    group_roots = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / (WIDTH // GROUPS) + eps)
    roots = ()
    for each in tl.static_range(GROUPS):
        roots = roots + (tl.sum(tl.where(group == each, group_roots, 0.0)),)
    y = finish_product(
        started, weight_ptr, scales_ptr, zeros_ptr, x_ptr, norm_ptr, roots, y_ptr,
        first, outputs, 0, stride_zeros,
        1, WIDTH, GROUPS, BITS, SCALED, ROWS, BLOCK, NEIGHBOURS, DEPTH, TENSOR_CORES,
    )[0]  # fmt: skip
    output = first + tl.arange(0, ROWS)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + output, mask=output < outputs, other=0.0)
        y += bias.to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + output, y.to(y_ptr.dtype.element_ty), mask=output < outputs)


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.ssd_norm_linear.ssd_norm_linear`."""
    dual: dict[str, Any] = {"D": D, "dt_bias": dt_bias, "dt_limit": dt_limit, "state": state}
    if x.shape[:2].numel() != 1:
        return one_after_another(
            x, dt, A, B, C, z, norm_weight, weight, bias,
            eps=eps, scales=scales, zeros=zeros, bits=bits, **dual,
        )  # fmt: skip
    gated, squares, new_state = scan_few_tokens(x, dt, A, B, C, z=z, **dual)
    assert squares is not None, "a gate was given"
    outputs, width = weight.shape[0], z.shape[2]
    overlap = overlap_options(x, weight, scales, zeros)
    matrix = as_matrix(weight, scales, zeros, bits=bits, width=width, dtype=x.dtype, depth=1)
    y = torch.empty(*x.shape[:2], outputs, dtype=x.dtype, device=x.device)
    groups = B.shape[2]
    parts = squares.numel() // groups
    _norm_linear[(matrix.programs,)](
        gated,
        squares,
        norm_weight.contiguous(),
        matrix.weight,
        matrix.scales,
        matrix.zeros,
        None if bias is None else bias.contiguous(),
        y,
        outputs,
        eps,
        *matrix.strides,
        GROUPS=groups,
        GROUP_BLOCK=triton.next_power_of_2(groups),
        PARTS=parts,
        PART_BLOCK=triton.next_power_of_2(parts),
        **matrix.options,
        **overlap,
    )
    return y, new_state
