"""RMSNorm in Triton: each program normalises a few whole rows and reads them once."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.rows import check_width, row_block, row_warps


@triton.jit(do_not_specialize=["rows", "groups"])
def _rms_norm(
    x_ptr,
    weight_ptr,
    gate_ptr,
    y_ptr,
    rows,
    groups,
    width,
    eps,
    stride_x,
    stride_x_group,
    stride_gate,
    stride_gate_group,
    stride_weight_group,
    GATE_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    real = column < width
    inside = (row < rows) & real
    outer, group = row // groups, row % groups

    source = x_ptr + outer * stride_x + group * stride_x_group + column
    x = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    if gate_ptr is not None:
        source = gate_ptr + outer * stride_gate + group * stride_gate_group + column
        gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        gate = gate * tl.sigmoid(gate)
        if GATE_FIRST:
            x = x * gate
    mean_square = tl.sum(x * x, axis=1) / width
    y = x * (1.0 / tl.sqrt(mean_square + eps))[:, None]
    if weight_ptr is not None:
        # The last row's group stands for rows beyond it, which are not stored.
        weight = tl.load(weight_ptr + group * stride_weight_group + column, mask=real, other=0.0)
        y = y * weight.to(tl.float32)
    if gate_ptr is not None and not GATE_FIRST:
        y = y * gate
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=inside)


def _by_group(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as [..., G, D]; a view where its last dimension is contiguous."""
    groups, width = (1, *tensor.shape)[-2:]
    flat = tensor.reshape(-1, groups, width)
    return flat if flat.stride(2) == 1 else flat.contiguous()


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    gate: torch.Tensor | None,
    gate_first: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """See `longspan.kernels.rms_norm.rms_norm`."""
    width = x.shape[-1]
    check_width("rms_norm", width)
    flat = _by_group(x)
    gates = None if gate is None else _by_group(gate)
    weight = None if weight is None else weight.contiguous()
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    rows = flat.shape[0] * flat.shape[1]
    each, padded = row_block(width)
    _rms_norm[(triton.cdiv(rows, each),)](
        flat,
        weight,
        gates,
        y,
        rows,
        flat.shape[1],
        width,
        eps,
        *flat.stride()[:2],
        *((0, 0) if gates is None else gates.stride()[:2]),
        0 if weight is None or weight.dim() == 1 else width,
        GATE_FIRST=gate_first,
        ROWS=each,
        WIDTH=padded,
        num_warps=row_warps(padded),
    )
    return y
