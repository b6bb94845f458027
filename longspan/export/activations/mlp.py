"""Mixers that look at one token at a time."""

from __future__ import annotations

from collections.abc import Mapping

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.numbers import F32, I64, widened
from longspan.models.config import MlpConfig, MoeConfig
from longspan.tensors import DTYPE_BYTES, DType


def mlp(layer: MlpConfig, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    """A SwiGLU MLP, by engine."""
    F, D, b = layer.d_ff, width, DTYPE_BYTES[dtype]
    return {
        # What a product gave is cut in two; or its input beside it; or a sum, its norm and a part.
        "onnx-cpu": ChunkBytes(per_token=F32 * max(4 * F, 2 * F + D, 3 * D)),
        # What a product gave, its halves, and what is made of them; or a sum and its norm.
        "onnx-cuda": ChunkBytes(per_token=max(4 * b * F, b * (2 * F + D), 3 * F32 * D)),
        "torch-cpu": ChunkBytes(fixed=widened(2 * F * D, dtype), per_token=F32 * (4 * F + D)),
        # What silu reads and writes; then what it wrote, and the output.
        "torch-cuda": ChunkBytes(per_token=b * max(3 * F, F + D)),
    }


def moe(layer: MoeConfig, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    """A mixture of experts, by engine; where experts compute in turn, all tokens may go to one.

    Where experts stream to torch-cuda they take more: `longspan.runtime.plan_weights` tells.
    """
    F, D, b = layer.d_ff, width, DTYPE_BYTES[dtype]
    routing = layer.routing_bytes
    # The shares by expert, twice, and an expert's tokens.
    listed_on_cpu = routing + 2 * F32 * layer.n_experts + 8 * I64
    # In Triton the most of: the router's float32 input; its shares and their order, which sorting
    # doubles; the sorting of a token's pairs; their hidden numbers and outputs, and the layer's.
    E, K = layer.n_experts, layer.top_k
    ordered = (2 * F32 + I64) * E
    listed = (2 * I64 + F32) * K
    on_cuda = max(
        F32 * (D + E),
        2 * ordered,
        ordered + 3 * listed + E * K,
        ordered + listed + b * (K * (F + D) + D),
    )
    return {
        # Beside tokens, the sum before an expert and the next: what a product gave is cut in two;
        # or its result, that times its share, and the sum after it.
        "onnx-cpu": ChunkBytes(per_token=F32 * max(4 * F + 3 * D, F + 6 * D) + listed_on_cpu),
        "onnx-cuda": ChunkBytes(per_token=b * (7 * F + 3 * D) + F32 * 6 * D + routing),
        "torch-cpu": ChunkBytes(
            fixed=widened(2 * F * D, dtype), per_token=F32 * (4 * F + 6 * D) + routing
        ),
        "torch-cuda": ChunkBytes(per_token=on_cuda),
    }
