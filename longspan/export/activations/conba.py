"""Conba."""

from __future__ import annotations

from collections.abc import Mapping

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.numbers import F32, widened
from longspan.kernels.conba.scratch import CHUNK_TOKENS, MAP_VALUES, ONE_PASS_TOKENS, TURNS
from longspan.models.config import ConbaConfig
from longspan.tensors import DTYPE_BYTES, DType


def conba(layer: ConbaConfig, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    """A Conba mixer, by engine."""
    M, D, b = layer.d_select, width, DTYPE_BYTES[dtype]
    E, S = layer.n_heads * layer.head_dim, layer.n_heads * layer.d_state
    rows = sum(layer.in_rows)
    adaptive = layer.gain != "off"
    # A chunk's map and the two states before it, float32, for every state entry.
    scratch = 0 if adaptive else F32 * (MAP_VALUES + 2) * S
    # Beside s and the scaling, float32: the output, whose norm takes its place; without a gain the
    # states of all tokens, and the most of the maps and of what C and D add to the output, float32.
    # The selection's SwiGLU takes the gate's place, the layer's output that of in_proj's rows.
    off = F32 * S + max(2 * F32 * E, -(-scratch // CHUNK_TOKENS))
    walked = F32 * S + (b * E if adaptive else off)
    # The same by plain torch: the selection's SwiGLU; s, the scaling, and each token's output
    # before they are joined, or the states of all tokens and the two before each chunk, beside two
    # outputs; the norm.
    plain = (
        max(2 * M + S + E, 3 * S + 3 * E, 2 * S + 5 * E)
        if adaptive
        else max(2 * M + S, 4 * S + 2 * S // TURNS + 2 * E, 2 * S + 4 * E)
    )
    # On CPUs the most of: what in_proj gave, the parts that it is cut into, and x; beside x, the
    # gate, and what is to be put out, the scaling, before the selection's SwiGLU, or s, the scaling
    # and the states of all tokens; the output, two pieces of its norm, and the gate.
    kept = (3 if adaptive else 2) * E
    on_cpu = max(2 * rows + D, kept + max(2 * M + 2 * S, 3 * S), S + 4 * E)
    return {
        "onnx-cpu": ChunkBytes(
            fixed=4 * F32 * S * layer.head_dim if adaptive else 0, per_token=F32 * on_cpu
        ),
        # The most of: what in_proj gave, and its parts; beside the gate, what the walk reads and
        # joins: without a gain with states at blocks' ends, with one of maps of a token's.
        "onnx-cuda": ChunkBytes(
            fixed=10 * F32 * S * layer.head_dim if adaptive else 0,
            per_token=max(
                b * (2 * rows + D), F32 * ((6 if adaptive else 7) * max(S, E) + S // 4), 3 * F32 * D
            ),
        ),
        "torch-cpu": ChunkBytes(
            fixed=widened(rows * D, dtype) + (4 * F32 * S * layer.head_dim if adaptive else 0),
            per_token=F32 * (2 * M + plain),
        ),
        "torch-cuda": ChunkBytes(
            fixed=scratch * (ONE_PASS_TOKENS // CHUNK_TOKENS),
            per_token=b * (rows + S) + walked,
        ),
    }
