"""Mixers that look at one token at a time."""

from __future__ import annotations

from collections.abc import Mapping

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.numbers import F32, widened
from longspan.models.config import MlpConfig
from longspan.tensors import DTYPE_BYTES, DType


def mlp(layer: MlpConfig, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    """A SwiGLU MLP, by engine."""
    F, D, b = layer.d_ff, width, DTYPE_BYTES[dtype]
    return {
        "onnx-cpu": ChunkBytes(per_token=F32 * (11 * F // 2 + 2 * D)),
        "onnx-cuda": ChunkBytes(per_token=b * (5 * F + 2 * D)),
        "torch-cpu": ChunkBytes(fixed=widened(2 * F * D, dtype), per_token=F32 * (4 * F + D)),
        "torch-cuda": ChunkBytes(per_token=b * (4 * F + D)),
    }
