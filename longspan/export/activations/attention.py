"""Attention over a window, over everything before, and over anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.numbers import F32, I64, widened
from longspan.kernels.attention.scratch import scratch_bytes
from longspan.models.config import (
    AnchorAttentionConfig,
    FullAttentionConfig,
    HeadsConfig,
    WindowAttentionConfig,
)
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


def projections(layer: HeadsConfig, width: int, dtype: DType) -> Mapping[Engine, int]:
    """Bytes a token of queries, keys, values and RoPE, of input and output, by engine."""
    D, b = width, DTYPE_BYTES[dtype]
    rows = layer.qkv_rows
    turned = 0 if layer.rope_base is None else layer.n_heads + layer.n_kv_heads
    rotated = turned * layer.head_dim
    return {
        "onnx-cpu": F32 * (7 * rows + 3 * D),
        "onnx-cuda": (b + F32) * 3 * rows + b * D,
        "torch-cpu": F32 * (5 * rows + D),
        # What was projected, what was rotated of it, the heads' output, and the layer's.
        "torch-cuda": b * (rows + rotated + layer.n_heads * layer.head_dim + D),
    }


def widened_projection(layer: HeadsConfig, width: int, dtype: DType) -> int:
    """The float32 copy of the projection to queries, keys and values that torch makes on CPUs."""
    return widened(layer.qkv_rows * width, dtype)


def window_attention(
    layer: WindowAttentionConfig, width: int, dtype: DType
) -> Mapping[Engine, ChunkBytes]:
    """Attention over a window, by engine."""
    H, W, b = layer.n_heads, layer.window, DTYPE_BYTES[dtype]
    past = 2 * (W - 1) * layer.n_kv_heads * layer.head_dim
    per_token = projections(layer, width, dtype)
    return {
        "onnx-cpu": Pairs(window=W, bytes=(18 * H * F32) // 5 + 7).added_to(
            fixed=F32 * past, per_token=per_token["onnx-cpu"]
        ),
        "onnx-cuda": Pairs(window=W, bytes=3 * H * b + 7).added_to(
            fixed=b * past, per_token=per_token["onnx-cuda"]
        ),
        "torch-cpu": Pairs(window=W, bytes=3 * H * F32 + 2).added_to(
            fixed=2 * F32 * past + widened_projection(layer, width, dtype),
            per_token=per_token["torch-cpu"],
        ),
        # The window itself moves on where it lies.
        "torch-cuda": ChunkBytes(
            fixed=scratch_bytes(layer.head_dim), per_token=per_token["torch-cuda"]
        ),
    }


def full_attention(
    layer: FullAttentionConfig, width: int, dtype: DType
) -> Mapping[Engine, ChunkBytes]:
    """Attention over a cache, by engine; the caches themselves are planned elsewhere.

    All but torch-cuda write L scores for each of C entries down, three times, and put the cache's
    keys and values in another order (and widen them, on CPUs) for the products. ONNX Runtime's
    Where also makes a float32 of each pair, and the mask a byte of each, from the entries' numbers.
    """
    H, b = layer.n_heads, DTYPE_BYTES[dtype]
    entry = 2 * layer.n_kv_heads * layer.head_dim
    # Beside what it reads, a convolution makes as much again; torch's reference joins a tail, too.
    # On torch-cuda what it read is gone when anything else is made.
    convolved = 0 if layer.d_conv is None else layer.qkv_rows
    plain = projections(layer, width, dtype)
    per_token = {
        engine: each + (F32 if engine.endswith("cpu") else b) * convolved
        for engine, each in plain.items()
    }
    per_token["torch-cuda"] = max(plain["torch-cuda"], 2 * b * convolved)
    return {
        "onnx-cpu": ChunkBytes(
            per_token=per_token["onnx-cpu"],
            per_entry=F32 * entry + widened(entry, dtype) + I64,
            per_token_entry=3 * H * F32 + F32 + 1,
        ),
        "onnx-cuda": ChunkBytes(
            per_token=per_token["onnx-cuda"], per_entry=b * entry, per_token_entry=3 * H * b + 2
        ),
        "torch-cpu": ChunkBytes(
            fixed=widened_projection(layer, width, dtype),
            per_token=per_token["torch-cpu"],
            per_entry=F32 * entry,
            per_token_entry=3 * H * F32 + 2,
        ),
        "torch-cuda": ChunkBytes(
            fixed=scratch_bytes(layer.head_dim),
            per_token=per_token["torch-cuda"],
        ),
    }


def anchor_attention(
    layer: AnchorAttentionConfig, width: int, dtype: DType
) -> Mapping[Engine, ChunkBytes]:
    """Attention over anchors and the open segment, by engine; the caches are planned elsewhere.

    All but torch-cuda join the cache's C entries and the L new ones before they score them, so
    that the formula is one of C + L columns: `full_attention`'s, the joined keys and values, eight
    numbers a column that say what is an anchor of which segment, and masks of a byte a pair.

    onnx-cpu is fitted to the growth of the resident set (ONNX Runtime 1.31.1, three sizes of heads,
    chunks of 16 to 256, 1,278 to 6,150 entries, float32 and bfloat16): scores come to lie where
    keys and values were joined.
    """
    H, b = layer.n_heads, DTYPE_BYTES[dtype]
    entry = 2 * layer.n_kv_heads * layer.head_dim
    per_token = projections(layer, width, dtype)
    column = b * entry + 8 * I64

    def scored(engine: Engine, *, fixed: int, per_column: int, per_pair: int) -> ChunkBytes:
        # Of projections, half are gone when scores are made.
        own = per_token[engine] // (2 if engine == "onnx-cpu" else 1)
        return ChunkBytes(
            fixed=fixed,
            per_token=own + per_column,
            per_pair=per_pair,
            per_entry=per_column,
            per_token_entry=per_pair,
        )

    wide = F32 * entry + widened(entry, dtype)
    return {
        "onnx-cpu": scored(
            "onnx-cpu",
            fixed=0,
            per_column=14 * F32 * entry // 5,
            per_pair=17 * H * F32 // 5,
        ),
        "onnx-cuda": scored(
            "onnx-cuda", fixed=0, per_column=column + b * entry, per_pair=3 * H * b + 6
        ),
        "torch-cpu": scored(
            "torch-cpu",
            fixed=widened_projection(layer, width, dtype),
            per_column=column + wide,
            per_pair=3 * H * F32 + 4,
        ),
        # The anchors before each token, and the token of each anchor: two int32.
        "torch-cuda": ChunkBytes(
            fixed=scratch_bytes(layer.head_dim), per_token=per_token["torch-cuda"] + 8
        ),
    }
