"""A mixture of experts in Triton: pairs of token and expert sorted by expert, then three launches.

    _gate_up    h = silu(W_gate x) * (W_up x) for each pair, in the order of the experts
    _down       W_down h, into the pair's own place
    _combine    the weighted sum of a token's pairs

A tile is a few pairs of one expert, so an expert's weights are read once for all of a tile. Which
expert a tile has is found on the device: nothing is copied to the host, and the grid is the most
tiles that there can be. A sum has a fixed order. Matrices of 8 or 4 bits become numbers of the
dtype of x in registers, a tile of one block at a time.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.moe.matrices import Matrices, Packed, sizes_of
from longspan.kernels.moe.routing import choose_experts

# Bits that tell the kernels of a number that is no packed one.
UNPACKED = tl.constexpr(16)
# Rows of a tile where experts have many pairs, and where they have few.
MANY_ROWS, FEW_ROWS = 64, 16


@triton.jit
def _tile(counts_ptr, tile, EXPERTS: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr):
    """The expert of a tile, its first sorted pair, and how many pairs it has, perhaps none."""
    expert = tl.arange(0, EXPERTS)
    counts = tl.load(counts_ptr + expert, mask=expert < E, other=0).to(tl.int32)
    tiles = (counts + ROWS - 1) // ROWS
    last_tiles = tl.cumsum(tiles, axis=0)
    chosen = tl.sum((last_tiles <= tile).to(tl.int32), axis=0)
    own = expert == chosen
    inside = (tile - tl.sum(tl.where(own, last_tiles - tiles, 0), axis=0)) * ROWS
    first = tl.sum(tl.where(expert < chosen, counts, 0), axis=0) + inside
    return chosen, first, tl.sum(tl.where(own, counts, 0), axis=0) - inside


@triton.jit
def _times_packed(
    x,
    total,
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    row,
    depth,
    real,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``total`` and x [n, k] times the numbers `depth` [k] of rows `row` [m] of packed matrices.

    They are of one block, so that its scales are those of the product; less the zero point they are
    integers that every dtype holds.
    """
    BLOCKS: tl.constexpr = (WIDTH + SCALED - 1) // SCALED
    block = tl.min(depth, axis=0) // SCALED
    source = (
        weight_ptr + row[None, :] * (BLOCKS * SCALED * BITS // 8) + (depth * BITS // 8)[:, None]
    )
    numbers = tl.load(source, mask=(depth < WIDTH)[:, None] & real[None, :], other=0).to(tl.int32)
    if BITS == 4:
        numbers = (numbers >> (depth % 2 * 4)[:, None]) & 15
    if zeros_ptr is None:
        numbers -= 2 ** (BITS - 1)
    else:
        source = zeros_ptr + row * ((BLOCKS * BITS + 7) // 8) + block * BITS // 8
        zero = tl.load(source, mask=real, other=0).to(tl.int32)
        if BITS == 4:
            zero = (zero >> (block % 2 * 4)) & 15
        numbers -= zero[None, :]
    scale = tl.load(scales_ptr + row * BLOCKS + block, mask=real, other=0.0).to(tl.float32)
    return total + scale[None, :] * tl.dot(x, numbers.to(x.dtype), input_precision=PRECISION)


@triton.jit(do_not_specialize=["tiles"])
def _gate_up(
    x_ptr,
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    pairs_ptr,
    counts_ptr,
    h_ptr,
    tiles,
    stride_x,
    K: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    E: tl.constexpr,
    EXPERTS: tl.constexpr,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    expert, first, pairs = _tile(counts_ptr, tl.program_id(0) % tiles, EXPERTS, E, ROWS)
    if pairs <= 0:
        return
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) // tiles * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    token = tl.load(pairs_ptr + first + row, mask=row < pairs, other=0) // K
    x_rows = x_ptr + token.to(tl.int64)[:, None] * stride_x + depth[None, :]
    matrix_row = expert.to(tl.int64) * 2 * F + column
    weights = weight_ptr + matrix_row[None, :] * D + depth[:, None]
    gate = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    up = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, D, DEPTH):
        deep = start + depth < D
        x = tl.load(x_rows + start, mask=(row < pairs)[:, None] & deep[None, :], other=0.0)
        if BITS == UNPACKED:
            real = deep[:, None] & (column < F)[None, :]
            gate_rows = tl.load(weights + start, mask=real, other=0.0)
            up_rows = tl.load(weights + (start + F * D), mask=real, other=0.0)
            gate = tl.dot(x, gate_rows, acc=gate, input_precision=PRECISION)
            up = tl.dot(x, up_rows, acc=up, input_precision=PRECISION)
        else:
            gate = _times_packed(
                x, gate, weight_ptr, scales_ptr, zeros_ptr, matrix_row, start + depth, column < F,
                D, BITS, SCALED, PRECISION,
            )  # fmt: skip
            up = _times_packed(
                x, up, weight_ptr, scales_ptr, zeros_ptr, matrix_row + F, start + depth, column < F,
                D, BITS, SCALED, PRECISION,
            )  # fmt: skip
    h = gate / (1.0 + tl.exp(-gate)) * up
    target = h_ptr + (first + row).to(tl.int64)[:, None] * F + column[None, :]
    real = (row < pairs)[:, None] & (column < F)[None, :]
    tl.store(target, h.to(h_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["tiles"])
def _down(
    h_ptr,
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    pairs_ptr,
    counts_ptr,
    parts_ptr,
    tiles,
    D: tl.constexpr,
    F: tl.constexpr,
    E: tl.constexpr,
    EXPERTS: tl.constexpr,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    expert, first, pairs = _tile(counts_ptr, tl.program_id(0) % tiles, EXPERTS, E, ROWS)
    if pairs <= 0:
        return
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) // tiles * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    h_rows = h_ptr + (first + row).to(tl.int64)[:, None] * F + depth[None, :]
    matrix_row = expert.to(tl.int64) * D + column
    weights = weight_ptr + matrix_row[None, :] * F + depth[:, None]
    part = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, F, DEPTH):
        deep = start + depth < F
        h = tl.load(h_rows + start, mask=(row < pairs)[:, None] & deep[None, :], other=0.0)
        if BITS == UNPACKED:
            real = deep[:, None] & (column < D)[None, :]
            rows = tl.load(weights + start, mask=real, other=0.0)
            part = tl.dot(h, rows, acc=part, input_precision=PRECISION)
        else:
            part = _times_packed(
                h, part, weight_ptr, scales_ptr, zeros_ptr, matrix_row, start + depth, column < D,
                F, BITS, SCALED, PRECISION,
            )  # fmt: skip
    pair = tl.load(pairs_ptr + first + row, mask=row < pairs, other=0)
    target = parts_ptr + pair.to(tl.int64)[:, None] * D + column[None, :]
    real = (row < pairs)[:, None] & (column < D)[None, :]
    tl.store(target, part.to(parts_ptr.dtype.element_ty), mask=real)


@triton.jit
def _combine(
    parts_ptr, weights_ptr, y_ptr, K: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    y = tl.zeros([COLUMNS], dtype=tl.float32)
    for k in range(K):
        part = tl.load(parts_ptr + (token * K + k) * D + column, mask=column < D, other=0.0)
        y += tl.load(weights_ptr + token * K + k) * part.to(tl.float32)
    tl.store(y_ptr + token * D + column, y.to(y_ptr.dtype.element_ty), mask=column < D)


def _blocks(dtype: torch.dtype, rows: int) -> dict[str, int | str]:
    """A tile's rows and columns, the precision of products, and stages."""
    wide = dtype == torch.float32
    return {
        "ROWS": rows,
        "COLUMNS": 32 if wide else 64,
        # float32 has no tensor cores.
        "PRECISION": "ieee" if wide else "tf32",
        "num_stages": 2 if wide else 3,
    }


def _arguments(
    matrices: Matrices, dtype: torch.dtype, rows: int
) -> tuple[list[torch.Tensor | None], dict[str, int]]:
    """Weight, scales and zero points as a kernel takes them, and how it goes through them.

    Beside two sums of 64 rows each, numbers that are unpacked find no room in four warps.
    """
    depth = 32 if dtype == torch.float32 else 64
    if isinstance(matrices, Packed):
        tensors = (matrices.weight, matrices.scales, matrices.zeros)
        parts = [None if each is None else each.contiguous() for each in tensors]
        return parts, {
            "BITS": matrices.bits,
            "SCALED": matrices.block,
            "DEPTH": min(depth, matrices.block),
            "num_warps": 8 if rows == MANY_ROWS else 4,
        }
    how = {"BITS": UNPACKED.value, "SCALED": 1, "DEPTH": depth, "num_warps": 4}
    return [matrices.to(dtype).contiguous(), None, None], how


def moe(
    x: torch.Tensor,
    logits: torch.Tensor,
    gate_up: Matrices,
    down: Matrices,
    *,
    top_k: int,
    renormalise: bool,
) -> torch.Tensor:
    """See `longspan.kernels.moe.moe`, over x [T, D] and logits [T, E]."""
    (tokens, D), (E, rows_of_both) = x.shape, sizes_of(gate_up)
    F = rows_of_both // 2
    x = x if x.stride(-1) == 1 else x.contiguous()
    weights, experts = choose_experts(logits, top_k=top_k, renormalise=renormalise)
    chosen = experts.flatten()
    pairs = chosen.argsort(stable=True)
    counts = (chosen[None] == torch.arange(E, device=x.device)[:, None]).sum(dim=1)
    count = tokens * top_k
    rows = MANY_ROWS if count > FEW_ROWS * E else FEW_ROWS
    (gate_up_parts, gate_up_packing), (down_parts, down_packing) = (
        _arguments(each, x.dtype, rows) for each in (gate_up, down)
    )
    # Every expert may end with a tile that is not full; none has more tiles than pairs.
    tiles = min(count, count // rows + E)
    tile = _blocks(x.dtype, rows)
    sizes = {"D": D, "F": F, "E": E, "EXPERTS": max(2, triton.next_power_of_2(E)), **tile}
    columns = int(tile["COLUMNS"])
    h = torch.empty((count, F), dtype=x.dtype, device=x.device)
    parts = torch.empty((count, D), dtype=x.dtype, device=x.device)
    y = torch.empty((tokens, D), dtype=x.dtype, device=x.device)
    _gate_up[(tiles * triton.cdiv(F, columns),)](
        x, *gate_up_parts, pairs, counts, h, tiles, x.stride(0),
        K=top_k, **gate_up_packing, **sizes,
    )  # fmt: skip
    _down[(tiles * triton.cdiv(D, columns),)](
        h, *down_parts, pairs, counts, parts, tiles, **down_packing, **sizes
    )
    _combine[(tokens, triton.cdiv(D, 1024))](
        parts, weights.contiguous(), y, K=top_k, D=D, COLUMNS=min(1024, triton.next_power_of_2(D))
    )
    return y
