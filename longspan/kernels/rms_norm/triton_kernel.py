"""RMSNorm in Triton: each program normalises a few whole rows and reads them once."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations; its tuples grow.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.rows import check_width, row_block


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
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    wait_for_last_launch(OVERLAP)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    outer, group = row // groups, row % groups
    x_ptr += outer * stride_x + group * stride_x_group
    square = tl.zeros([ROWS], dtype=tl.float32)
    values = ()
    gates = ()
    for part in tl.static_range(2 if REST > 0 else 1):
        column = part * MAIN + tl.arange(0, REST if part > 0 else MAIN)[None, :]
        inside = (row < rows) & (column < width)
        x = tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)
        if gate_ptr is not None:
            source = gate_ptr + outer * stride_gate + group * stride_gate_group + column
            gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
            gate = gate * tl.sigmoid(gate)
            if GATE_FIRST:
                x = x * gate
            else:
                gates = gates + (gate,)
        square += tl.sum(x * x, axis=1)
        values = values + (x,)

    root = (1.0 / tl.sqrt(square / width + eps))[:, None]
    for part in tl.static_range(2 if REST > 0 else 1):
        column = part * MAIN + tl.arange(0, REST if part > 0 else MAIN)[None, :]
        real = column < width
        y = values[part] * root
        if weight_ptr is not None:
            # Rows beyond the last have a group, too; they are not stored.
            source = weight_ptr + group * stride_weight_group + column
            y = y * tl.load(source, mask=real, other=0.0).to(tl.float32)
        if gate_ptr is not None and not GATE_FIRST:
            y = y * gates[part]
        target = y_ptr + row * width + column
        tl.store(target, y.to(y_ptr.dtype.element_ty), mask=(row < rows) & real)


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
    overwrite: bool,
) -> torch.Tensor:
    """See `longspan.kernels.rms_norm.rms_norm`."""
    width = x.shape[-1]
    check_width("rms_norm", width)
    flat = _by_group(x)
    gates = None if gate is None else _by_group(gate)
    weight = None if weight is None else weight.contiguous()
    # A program holds whole rows before it stores the first.
    in_place = overwrite and dtype == x.dtype and x.is_contiguous()
    y = x if in_place else torch.empty(x.shape, dtype=dtype, device=x.device)
    rows = flat.shape[0] * flat.shape[1]
    block = row_block(width, neighbours=16 // min(x.element_size(), 4))
    _rms_norm[(-(-rows // block["ROWS"]),)](
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
        **block,
        **overlap_options(x),
    )
    return y
