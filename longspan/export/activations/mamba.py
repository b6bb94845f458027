"""Mamba-1 and Mamba-2."""

from __future__ import annotations

from collections.abc import Mapping

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.numbers import F32, widened
from longspan.kernels.selective_scan.scratch import MAX_CHUNKS, MIN_CHUNK_TOKENS
from longspan.kernels.ssd.scratch import PROGRAMS, STACKED_PROGRAMS, Sizes
from longspan.models.config import Mamba2Config, MambaConfig
from longspan.tensors import DTYPE_BYTES, DType


def mamba(layer: MambaConfig, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    """A Mamba-1 mixer, by engine."""
    E, N, D, b = layer.d_inner, layer.d_state, width, DTYPE_BYTES[dtype]
    low = layer.dt_rank + 2 * N
    return {
        # Of all tokens the gate, u, the steps, u times these, and y; of one, what updates a state.
        "onnx-cpu": ChunkBytes(
            fixed=5 * F32 * E * N, per_token=F32 * max(5 * E + low, 2 * E + D, 3 * D)
        ),
        # LinearAttention reads a key and a decay for every channel and state, all in float32,
        # beside the gate.
        "onnx-cuda": ChunkBytes(
            per_token=max(F32 * (2 * E * N + 3 * E + 3 * N) + b * E, b * (4 * E + D), 3 * F32 * D)
        ),
        "torch-cpu": ChunkBytes(
            fixed=widened(2 * E * D, dtype), per_token=F32 * (10 * E + D + low)
        ),
        "torch-cuda": ChunkBytes(
            # The states before the scan's chunks, which are longer where there are more; B and C in
            # float32. The steps that the scan reads are gone when the layer's output is made.
            per_token=b * (4 * E + max(E, D) + low) + F32 * 2 * N,
            per_block=F32 * E * (N + 1),
            block_tokens=MIN_CHUNK_TOKENS,
            most_blocks=MAX_CHUNKS,
        ),
    }


def mamba2(layer: Mamba2Config, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    """A Mamba-2 mixer, by engine."""
    H, E, D, b = layer.n_heads, layer.d_inner, width, DTYPE_BYTES[dtype]
    channels = layer.conv_channels
    gated = 2 * E if layer.norm_eps is not None else 3 * E
    rows = E + channels + H
    state = F32 * H * (layer.d_state * layer.head_dim + 1)
    scan = Sizes(
        heads=H,
        groups=layer.n_groups,
        head_width=layer.head_dim,
        d_state=layer.d_state,
        dtype=dtype,
    )
    segments = max(1, (STACKED_PROGRAMS if scan.stacked_heads else PROGRAMS) // H)
    chunk = scan.chunk_tokens
    scanned = F32 * 2 * H
    if scan.stacked_heads:
        scanned += b * layer.n_groups * chunk + -(-F32 * H // chunk)
    return {
        # What in_proj gave, and the parts that it is cut into.
        "onnx-cpu": ChunkBytes(per_token=F32 * max(2 * rows, rows + D, 3 * D)),
        # The most of: what in_proj gave, and the parts that it is cut into; the convolution's
        # output widened, and cut; what LinearAttention reads, in float32, beside the gate.
        "onnx-cuda": ChunkBytes(
            per_token=max(
                b * (2 * rows + D),
                2 * F32 * channels + b * (E + H),
                F32 * (2 * E + channels + H) + b * E,
                3 * F32 * D,
            )
        ),
        # The most of: the widened rows of in_proj, all but the gate's, then the gate's or out_proj;
        # what a token of the scan makes of the state, three of it, and its keys and queries. Of a
        # chunk's tensors the convolution has most: what it reads, the same rounded to the tail's
        # dtype where that is narrower, the same behind the tail, and a sum, what is added, and
        # their sum.
        "torch-cpu": ChunkBytes(
            fixed=max(
                widened((rows - E) * D, dtype),
                widened(E * D, dtype),
                F32 * layer.d_state * (3 * E + 2 * H),
            ),
            per_token=F32 * (5 * channels + 3 * H + D) + widened(channels, dtype),
        ),
        # The most of: what the convolution reads and writes; what the scan does, of a slice two
        # numbers a head, states of the segments, and where heads are stacked the products of B and
        # C within chunks and the chunks' decays; y and the gate; the result. Each is freed when the
        # next one has read it. A segment has a chunk or more. Beyond a slice there are two states
        # between slices: one counts as a segment more, as there are more chunks then.
        "torch-cuda": ChunkBytes(
            fixed=state + chunk * scanned,
            per_token=max(
                b * (2 * channels + 2 * H), b * (channels + E + H) + scanned, b * gated, b * (E + D)
            ),
            per_block=state,
            block_tokens=chunk,
            most_blocks=segments + 1,
        ),
    }
