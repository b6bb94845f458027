"""Many tokens of the state-space dual: slice by slice, which kernels are launched with what.

In bfloat16, where it can, a slice takes the launches of `triton_stacked.py`, else those of
`triton_chunks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
import triton

from longspan.kernels.device import shared_memory_bytes
from longspan.kernels.ssd import scratch
from longspan.kernels.ssd.triton_chunks import chunk_sums, segment_states, walk_segments
from longspan.kernels.ssd.triton_stacked import stacked_states, stacked_walk
from longspan.kernels.ssd.triton_within import add_within, chunk_factors, chunk_products

# Neighbouring heads whose steps of a token are read together.
SUM_HEADS = 16
# Few heads of a chunk have what `add_within` adds: a program that finds none ends at once.
WITHIN_HEADS = 16
KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Tensors of a slice as `ssd` has them; `y` and `new_state` are written."""

    x: torch.Tensor
    dt: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    D: torch.Tensor | None
    dt_bias: torch.Tensor | None
    dt_limit: tuple[float, float]
    state: torch.Tensor
    y: torch.Tensor
    new_state: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What follows from shapes alone; calls with the same ones share it.

    Attributes:
        most: tokens of a slice.
        cut: of a slice.
        stacked: heads that one program takes at most; 0 for a launch by head.
        sizes: arguments that all kernels have.
        floats: float32 numbers of the scratch, part by part, those of tokens in two.
        products: numbers of the chunks' products, in the dtype of x.
    """

    most: int
    cut: scratch.Cut
    stacked: int
    sizes: dict[str, int]
    floats: tuple[int, ...]
    products: int


@lru_cache(maxsize=64)
def _layout(shape: tuple[int, ...], groups: int, d_state: int, dtype: torch.dtype) -> Layout:
    batch, length, heads, width = shape
    model = scratch.Sizes(
        heads=heads,
        groups=groups,
        head_width=width,
        d_state=d_state,
        dtype=str(dtype).removeprefix("torch."),
    )
    most, chunk = min(length, scratch.SLICE_TOKENS), model.chunk_tokens
    cut = scratch.cut_slice(batch, most, model)
    by_token, *others = scratch.scratch_numbers(batch, cut, model)
    return Layout(
        most=most,
        cut=cut,
        stacked=model.stacked_heads,
        sizes={
            "H": heads,
            "REPEATS": heads // groups,
            "N": d_state,
            "P": width,
            "CHUNK": chunk,
            "STATES": max(16, triton.next_power_of_2(d_state)),
        },
        floats=(by_token // 2, by_token // 2, *others),
        products=batch * cut.chunks * groups * chunk**2 if model.stacked_heads else 0,
    )


class Slices:
    """The cut of a call's slices, and the scratch that they share."""

    def __init__(self, x: torch.Tensor, *, groups: int, d_state: int) -> None:
        layout = _layout(x.shape, groups, d_state, x.dtype)
        self.most, self.cut, self.stacked = layout.most, layout.cut, layout.stacked
        self.sizes = layout.sizes
        floats = torch.empty(sum(layout.floats), dtype=torch.float32, device=x.device)
        *self.by_token, self.states, self.totals, self.decays = floats.split_with_sizes(
            layout.floats
        )
        if self.stacked:
            self.products = torch.empty(layout.products, dtype=x.dtype, device=x.device)

    def scan(self, a: Inputs) -> None:
        """Fill `y` and `new_state` of one slice."""
        tokens = a.x.shape[1]
        chunks = _cdiv(tokens, self.sizes["CHUNK"])
        segments = _cdiv(chunks, self.cut.chunks_per_segment)
        even = tokens % self.sizes["CHUNK"] == 0 and self.sizes["STATES"] == self.sizes["N"]
        span = (tokens, chunks, self.cut.chunks_per_segment)
        if self.stacked:
            self._stacked(a, span, segments, even)
        else:
            self._by_head(a, span, segments, even)

    def _stacked(self, a: Inputs, span: tuple[int, int, int], segments: int, even: bool) -> None:
        tokens, chunks, _ = span
        batch, sizes = a.x.shape[0], self.sizes
        heads, groups, chunk = sizes["H"], a.B.shape[2], sizes["CHUNK"]
        starts, ends = self.by_token
        stacked, walk_stages, state_stages = _stacking(a.x.device, self.stacked)
        x, B, C = a.x.stride()[:3], a.B.stride()[:3], a.C.stride()[:3]
        chunk_factors[(chunks, _cdiv(heads, SUM_HEADS), batch)](
            a.dt, a.A, a.dt_bias, starts, ends, self.decays, *a.dt_limit, tokens, *a.dt.stride(),
            H=heads, HEADS=SUM_HEADS, CHUNK=chunk,
        )  # fmt: skip
        chunk_products[(chunks, groups, batch)](
            a.B, a.C, self.products, tokens, *B, *C,
            N=sizes["N"], CHUNK=chunk, STATES=sizes["STATES"], EVEN=even,
        )  # fmt: skip
        if segments > 1:
            stacked_states[(segments - 1, heads, batch)](
                a.x, a.B, ends, self.decays, self.states, self.totals, *span, *x, *B,
                **sizes, HEADS=1, MOST=scratch.SLICE_TOKENS // chunk, STAGES=state_stages,
                EVEN=even, num_warps=_warps(sizes["P"]),
            )  # fmt: skip
        stacked_walk[(segments, heads // stacked, batch)](
            a.x, a.B, a.C, a.D, self.products, starts, ends, self.decays, self.states, self.totals,
            a.state, a.y, a.new_state, *span, *x, *B, *C, *_skip_strides(a.D), *a.state.stride(),
            a.y.stride(0), **sizes, HEADS=stacked, STAGES=walk_stages, EVEN=even,
            num_warps=_warps(stacked * sizes["P"]),
        )  # fmt: skip
        add_within[(chunks, _cdiv(heads, WITHIN_HEADS), batch)](
            a.x, a.dt, a.A, a.dt_bias, self.products, self.decays, a.y, *a.dt_limit, tokens, *x,
            *a.dt.stride(), a.y.stride(0), H=heads, REPEATS=sizes["REPEATS"], P=sizes["P"],
            CHUNK=chunk, HEADS=WITHIN_HEADS,
        )  # fmt: skip

    def _by_head(self, a: Inputs, span: tuple[int, int, int], segments: int, even: bool) -> None:
        tokens, chunks, _ = span
        batch, heads, width = a.x.shape[0], self.sizes["H"], self.sizes["P"]
        steps, sums = self.by_token
        tile = _tile(a.x)
        tile["EVEN"] = even and width % tile["WIDTH"] == 0
        widths = _cdiv(width, tile["WIDTH"])
        x, B, C = a.x.stride()[:3], a.B.stride()[:3], a.C.stride()[:3]
        chunk_sums[(chunks, _cdiv(heads, SUM_HEADS), batch)](
            a.dt, a.A, a.dt_bias, steps, sums, *a.dt_limit, tokens, *a.dt.stride(),
            H=heads, HEADS=SUM_HEADS, CHUNK=self.sizes["CHUNK"],
        )  # fmt: skip
        if segments > 1:
            segment_states[((segments - 1) * widths, heads, batch)](
                a.x, a.B, steps, sums, self.states, self.totals, *span, *x, *B, **self.sizes, **tile
            )  # fmt: skip
        walk_segments[(segments * widths, heads, batch)](
            a.x, a.B, a.C, a.D, steps, sums, self.states, self.totals, a.state, a.y, a.new_state,
            *span, *x, *B, *C, *_skip_strides(a.D), *a.state.stride(), a.y.stride(0),
            **self.sizes, **tile, SKIP_ON_DIAGONAL=a.D is not None and a.D.stride(1) == 0,
        )  # fmt: skip


def scan_in_slices(a: Inputs) -> None:
    """Fill `y` and `new_state`, slice by slice over the same scratch."""
    length, state = a.x.shape[1], a.state
    slices = Slices(a.x, groups=a.B.shape[2], d_state=a.B.shape[3])
    if slices.most == length:
        slices.scan(a)
        return
    for start in range(0, length, slices.most):
        part = slice(start, min(start + slices.most, length))
        # Not in place: a walk may end before another has read the state it starts from.
        after = a.new_state if part.stop == length else torch.empty_like(a.new_state)
        slices.scan(
            Inputs(
                x=a.x[:, part],
                dt=a.dt[:, part],
                A=a.A,
                B=a.B[:, part],
                C=a.C[:, part],
                D=a.D,
                dt_bias=a.dt_bias,
                dt_limit=a.dt_limit,
                state=state,
                y=a.y[:, part],
                new_state=after,
            )
        )
        state = after


def _warps(rows: int) -> int:
    """Of a state of `rows` rows and 128 columns, each thread of these holds 64 numbers."""
    return 8 if rows == scratch.STACKED_ROWS else 4


def _skip_strides(D: torch.Tensor | None) -> tuple[int, ...]:
    return (0, 0) if D is None else D.stride()


def _cdiv(count: int, each: int) -> int:
    """Triton's own would take longer than a launch's other arguments: it is for kernels, too."""
    return -(-count // each)


@cache
def _stacking(device: torch.device, most: int) -> tuple[int, int, int]:
    """Heads that are stacked, at most `most`, stages of their walk, and of their states."""
    # Three stages of two heads of 64 take 184 KiB. Where that is too much, matrix products of
    # older GPUs are likely, and two heads would spill their registers: one takes 73 KiB.
    if shared_memory_bytes(device) >= 200 * KIB:
        return most, 3, 4
    return 1, 2, 2


def _tile(x: torch.Tensor) -> dict[str, Any]:
    """Channels of a head's tile; precision of products, stages of the pipeline, and warps."""
    if x.dtype != torch.bfloat16:
        # float16 is widened (`dot_rounded`), float32 is split in three: registers hold both down.
        return {"WIDTH": 16, "PRECISION": "tf32x3", "STAGES": 1, "num_warps": 8}
    width = min(64, max(16, triton.next_power_of_2(x.shape[3])))
    # Two stages take 90 KiB, and two programs to a multiprocessor hide each other's waiting.
    stages = 2 if shared_memory_bytes(x.device) >= 160 * KIB else 1
    return {"WIDTH": width, "PRECISION": "tf32", "STAGES": stages, "num_warps": 4}
