"""Attention over a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.numbers import F32, widened
from longspan.models.config import WindowAttentionConfig
from longspan.tensors import DTYPE_BYTES, DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Attention's L (L + W - 1) scores as parts of a `ChunkBytes`."""

    window: int
    bytes: int

    def added_to(self, *, fixed: int, per_token: int) -> ChunkBytes:
        """The scores beside what is fixed and what grows with the tokens."""
        return ChunkBytes(
            fixed=fixed,
            per_token=per_token + self.bytes * (self.window - 1),
            per_pair=self.bytes,
        )


def window_attention(
    layer: WindowAttentionConfig, width: int, dtype: DType
) -> Mapping[Engine, ChunkBytes]:
    """Attention over a window, by engine."""
    H, G, P, W = layer.n_heads, layer.n_kv_heads, layer.head_dim, layer.window
    D, b = width, DTYPE_BYTES[dtype]
    rows = (H + 2 * G) * P
    past = 2 * (W - 1) * G * P
    return {
        "onnx-cpu": Pairs(window=W, bytes=(18 * H * F32) // 5 + 7).added_to(
            fixed=F32 * past, per_token=F32 * (7 * rows + 3 * D)
        ),
        "onnx-cuda": Pairs(window=W, bytes=3 * H * b + 7).added_to(
            fixed=b * past, per_token=(b + F32) * 3 * rows + b * D
        ),
        "torch-cpu": Pairs(window=W, bytes=3 * H * F32 + 2).added_to(
            fixed=2 * F32 * past + widened(rows * D, dtype),
            per_token=F32 * (5 * rows + D),
        ),
        "torch-cuda": ChunkBytes(fixed=b * past, per_token=3 * b * rows + 4 * F32 * H * P + b * D),
    }
