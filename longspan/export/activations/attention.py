"""Attention over a window, over everything before, and over anchors."""

from __future__ import annotations

from collections.abc import Mapping

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.numbers import F32, I64, widened
from longspan.kernels.attention.scratch import (
    PLAIN_BLOCK_QUERIES,
    WINDOW_BLOCK_QUERIES,
    block_queries,
    scratch_bytes,
)
from longspan.models.config import (
    AnchorAttentionConfig,
    FullAttentionConfig,
    HeadsConfig,
    WindowAttentionConfig,
)
from longspan.tensors import DTYPE_BYTES, DType


def projections(layer: HeadsConfig, width: int, dtype: DType) -> Mapping[Engine, int]:
    """Bytes a token of queries, keys, values and RoPE, of input and output, by engine."""
    D, b = width, DTYPE_BYTES[dtype]
    rows, entry = layer.qkv_rows, 2 * layer.n_kv_heads * layer.head_dim
    turned = 0 if layer.rope_base is None else layer.n_heads + layer.n_kv_heads
    rotated = turned * layer.head_dim
    return {
        # Queries, keys and values twice, and the heads' output; or a norm and what it is made of.
        "onnx-cpu": F32 * max(3 * (rows - entry) + 2 * entry, rows + D, 3 * D),
        # What RoPE reads and makes of queries, keys and values; or a sum and its norm.
        "onnx-cuda": max(b * (5 * rows + 2 * layer.head_dim), b * (2 * rows + D), 3 * F32 * D),
        "torch-cpu": F32 * (5 * rows + D),
        # What was projected, what was rotated of it, the heads' output, and the layer's.
        "torch-cuda": b * (rows + rotated + layer.n_heads * layer.head_dim + D),
    }


def widened_projection(layer: HeadsConfig, width: int, dtype: DType) -> int:
    """The float32 copy of the projection to queries, keys and values that torch makes on CPUs."""
    return widened(layer.qkv_rows * width, dtype)


def block_rows(layer: HeadsConfig) -> int:
    """Rows of scores that ONNX Runtime writes down at once on CPUs, of the heads of a key head."""
    shared = layer.n_heads // layer.n_kv_heads
    return shared * block_queries(shared)


def seen_bytes(layer: HeadsConfig, dtype: DType) -> int:
    """Bytes an entry of what the blocks of a key head read and make of it on ONNX Runtime's CPU.

    Its key and value in float32; beside them, first, what the value is made of, then a block's
    scores twice.
    """
    source = 0 if dtype == "float32" else DTYPE_BYTES[dtype]
    width = layer.head_dim
    return 2 * F32 * width + max(source * width, 2 * F32 * block_rows(layer))


def plain_block(layer: HeadsConfig) -> int:
    """Bytes that torch on CPUs writes down at once for a key: scores, weights, and two masks."""
    return PLAIN_BLOCK_QUERIES * (2 * F32 * layer.n_heads + 2)


def window_attention(
    layer: WindowAttentionConfig, width: int, dtype: DType
) -> Mapping[Engine, ChunkBytes]:
    """Attention over a window, by engine."""
    H, W, b = layer.n_heads, layer.window, DTYPE_BYTES[dtype]
    past = 2 * (W - 1) * layer.n_kv_heads * layer.head_dim
    per_token = projections(layer, width, dtype)
    block, plain, scores = WINDOW_BLOCK_QUERIES, plain_block(layer), 2 * H * b + 1
    columns = block + W
    # A block's scores twice beside what it may see, and its keys and values.
    scored = block * (2 * H + 3 * H // layer.n_kv_heads)
    scored += 2 * layer.n_kv_heads * layer.head_dim
    return {
        # The past behind which new ones stand, and in another order: of 16 bits the first takes the
        # place of the widened past, which the last entry counts.
        "onnx-cpu": ChunkBytes(
            fixed=2 * F32 * past - widened(past, dtype) + F32 * columns * scored,
            per_token=per_token["onnx-cpu"],
        ),
        # Each of L queries scores L + W - 1 keys, twice, beside a mask of a byte; that of all
        # layers is counted with the rest.
        "onnx-cuda": ChunkBytes(
            fixed=b * past, per_token=per_token["onnx-cuda"] + scores * (W - 1), per_pair=scores
        ),
        "torch-cpu": ChunkBytes(
            fixed=2 * F32 * past + W * plain + widened_projection(layer, width, dtype),
            per_token=per_token["torch-cpu"] + plain,
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

    onnx-cuda writes L scores for each of C entries down, twice, and puts the cache's keys and
    values in another order for the products. onnx-cpu holds the keys and values of one head, in
    float32, and scores a block of queries: what may be seen and the scores, then these and the
    weights; what new queries see of each other is a byte and two float32 a pair, of which layers
    share the last (`shared_bytes`; on onnx-cuda what is seen of the cache). torch-cpu joins
    keys and values in use in float32 (widened beside the joined ones), and scores a block.
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
            per_pair=F32 + 1,
            per_entry=seen_bytes(layer, dtype),
        ),
        "onnx-cuda": ChunkBytes(
            per_token=per_token["onnx-cuda"], per_entry=b * entry, per_token_entry=2 * H * b
        ),
        "torch-cpu": ChunkBytes(
            fixed=widened_projection(layer, width, dtype),
            per_token=per_token["torch-cpu"],
            per_entry=F32 * entry + widened(entry, dtype) // 2 + plain_block(layer),
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
    onnx-cpu joins those in use of each head once more, and makes what a block sees of three parts.
    """
    H, b = layer.n_heads, DTYPE_BYTES[dtype]
    entry = 2 * layer.n_kv_heads * layer.head_dim
    per_token = projections(layer, width, dtype)
    column = b * entry + 8 * I64

    def scored(
        engine: Engine, *, per_column: int, fixed: int = 0, per_pair: int = 0, scores: int = 0
    ) -> ChunkBytes:
        return ChunkBytes(
            fixed=fixed,
            per_token=per_token[engine] + per_column,
            per_pair=per_pair + scores,
            per_entry=per_column,
            per_token_entry=scores,
        )

    wide = F32 * entry + widened(entry, dtype) // 2
    return {
        "onnx-cpu": scored(
            "onnx-cpu",
            per_column=column + F32 * layer.head_dim + seen_bytes(layer, dtype),
            per_pair=F32 + 4,
        ),
        "onnx-cuda": scored("onnx-cuda", per_column=column + b * entry, scores=2 * H * b + 5),
        "torch-cpu": scored(
            "torch-cpu",
            fixed=widened_projection(layer, width, dtype),
            per_column=column + wide + plain_block(layer),
        ),
        # The anchors before each token, and the token of each anchor: two int32.
        "torch-cuda": ChunkBytes(
            fixed=scratch_bytes(layer.head_dim), per_token=per_token["torch-cuda"] + 8
        ),
    }
