"""Gated linear attention and retention.

Counted from the graph and from the code.
"""

from __future__ import annotations

from collections.abc import Mapping

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.numbers import F32, widened
from longspan.kernels.gla.onnx_op import value_parts
from longspan.kernels.gla.scratch import CHUNK_TOKENS, SEGMENT_CHUNKS, scratch_bytes
from longspan.models.config import GlaConfig
from longspan.tensors import DTYPE_BYTES, DType


def gla(layer: GlaConfig, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    """A mixer of gated linear attention or retention, by engine."""
    H, K, V, D, b = layer.n_heads, layer.key_dim, layer.value_dim, width, DTYPE_BYTES[dtype]
    keys, values, state = H * K, H * V, F32 * H * K * V
    rows = 2 * keys + 2 * values + (layer.gate_rank or 0)
    parts = value_parts(K, V)
    # ONNX Runtime's operator wants a state in parts, and a decay for each of them.
    cut = 2 * state if parts > 1 else 0
    decay = keys if layer.gate_rank is not None else 0
    rotated = 2 * keys if layer.rope_base is not None else 0
    # Of torch-cuda, beside rotated queries and keys and the float32 decay, the most of: what the
    # decay is made of, and the recurrence's float32 output. Then that output and its norm, which
    # takes the output's place in float32, else that of rotated ones and decay if it fits there.
    made = b * rotated + F32 * decay
    norm = 0 if b == F32 else b * values
    beside = made if made < norm else 0
    most = max(made + max(b * decay, F32 * values), beside + F32 * values + norm)
    # What a rotation needs before the recurrence, and the gated norm after it.
    wide = 3 * F32 * max(rotated // 2, values)
    return {
        # The most of: what in_proj gave, and the parts that it is cut into; the same parts beside
        # what makes the decay; what the operator reads and writes, beside the gate.
        "onnx-cpu": ChunkBytes(
            fixed=cut,
            per_token=F32
            * max(
                2 * rows,
                rows + max(D, 3 * decay),
                2 * keys + 3 * values + (parts + (parts > 1)) * decay,
                3 * D,
            ),
        ),
        # The most of: what in_proj gave, and its parts, in float32 where they are rotated; what
        # LinearAttention reads and writes, in float32, beside the gate.
        "onnx-cuda": ChunkBytes(
            fixed=cut,
            per_token=max(
                2 * (F32 if rotated else b) * rows + b * D,
                F32 * (3 * keys + 3 * values + (parts - 1) * decay) + b * values,
                3 * F32 * D,
            ),
        ),
        "torch-cpu": ChunkBytes(
            fixed=widened(rows * D, dtype) + 2 * state,
            per_token=F32 * (rows + D + 2 * decay + rotated + values) + wide,
        ),
        "torch-cuda": ChunkBytes(
            per_token=max(b * rows + most, b * (values + D)),
            per_block=scratch_bytes(1, CHUNK_TOKENS, heads=H, key_width=K, value_width=V),
            block_tokens=CHUNK_TOKENS,
            most_blocks=SEGMENT_CHUNKS,
        ),
    }
