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
from longspan.kernels.linear.triton_kernel import load_weights, row_block
from longspan.kernels.ssd.triton_kernel import scan_few_tokens
from longspan.kernels.ssd_norm_linear.reference import ssd_norm_linear as one_after_another


@triton.jit
def _norm_linear(
    x_ptr,
    squares_ptr,
    norm_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    outputs,
    eps,
    stride_weight,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    PART_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    output = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows_ptr = weight_ptr + (tl.minimum(output, outputs - 1) * stride_weight)[:, None]
    ahead = ()
    for part in tl.static_range(DEPTH):
        ahead = ahead + (load_weights(rows_ptr, part * BLOCK, WIDTH, BLOCK),)
    wait_for_last_launch(OVERLAP)

    group = tl.arange(0, GROUP_BLOCK)
    part = tl.arange(0, PART_BLOCK)[None, :]
    source = squares_ptr + group[:, None] * PARTS + part
    squares = tl.load(source, mask=(group < GROUPS)[:, None] & (part < PARTS), other=0.0)
    roots = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / (WIDTH // GROUPS) + eps)
    total = tl.zeros([ROWS, BLOCK // NEIGHBOURS], dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + column, mask=column < WIDTH, other=0.0)
        scale = tl.load(norm_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        if GROUPS > 1:
            own = (column // (WIDTH // GROUPS))[:, None] == group[None, :]
            x = x * tl.sum(tl.where(own, roots[None, :], 0.0), axis=1)
        else:
            x = x * tl.sum(roots)
        x = (x * scale).to(y_ptr.dtype.element_ty)
        weights = ahead[0].to(x.dtype).to(tl.float32)
        ahead = ahead[1:] + (load_weights(rows_ptr, start + DEPTH * BLOCK, WIDTH, BLOCK),)
        products = weights * x.to(tl.float32)[None, :]
        total += tl.sum(tl.reshape(products, [ROWS, BLOCK // NEIGHBOURS, NEIGHBOURS]), axis=2)

    y = tl.sum(total, axis=1)
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.ssd_norm_linear.ssd_norm_linear`."""
    dual: dict[str, Any] = {"D": D, "dt_bias": dt_bias, "dt_limit": dt_limit, "state": state}
    if x.shape[:2].numel() != 1:
        return one_after_another(x, dt, A, B, C, z, norm_weight, weight, bias, eps=eps, **dual)
    gated, squares, new_state = scan_few_tokens(x, dt, A, B, C, z=z, **dual)
    assert squares is not None, "a gate was given"
    outputs, width = weight.shape
    overlap = overlap_options(x, weight)
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    y = torch.empty(*x.shape[:2], outputs, dtype=x.dtype, device=x.device)
    groups = B.shape[2]
    parts = squares.numel() // groups
    block = row_block(outputs, width, weight.element_size(), depth=1)
    _norm_linear[(triton.cdiv(outputs, block["ROWS"]),)](
        gated,
        squares,
        norm_weight.contiguous(),
        weight,
        None if bias is None else bias.contiguous(),
        y,
        outputs,
        eps,
        weight.stride(0),
        WIDTH=width,
        GROUPS=groups,
        GROUP_BLOCK=triton.next_power_of_2(groups),
        PARTS=parts,
        PART_BLOCK=triton.next_power_of_2(parts),
        **block,
        **overlap,
    )
    return y, new_state
