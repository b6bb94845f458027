"""What ONNX Runtime computes once for all layers that need the same, and holds until the last.

shared_bytes(config, "onnx-cpu").at(256)
"""

from __future__ import annotations

from collections.abc import Hashable

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.numbers import F32
from longspan.models.config import (
    AnchorAttentionConfig,
    FullAttentionConfig,
    GlaConfig,
    HeadsConfig,
    LayerConfig,
    ModelConfig,
    WindowAttentionConfig,
)


def shared_bytes(config: ModelConfig, engine: Engine) -> ChunkBytes:
    """Bytes of a chunk: what RoPE turns by, and what a token may see; on torch nothing is shared.

    On onnx-cpu a float32 for each pair of new tokens says what is seen; what blocks of queries see
    of caches and windows they work out for themselves. On onnx-cuda it is a byte for each score,
    and what RoPE turns by is small beside what a layer takes.
    """
    windows = {each.window for each in config.layers if isinstance(each, WindowAttentionConfig)}
    rules = {each.rule for each in config.layers if isinstance(each, AnchorAttentionConfig)}
    full = any(isinstance(each, FullAttentionConfig) for each in config.layers)
    if engine == "onnx-cpu":
        turned = {found for each in config.layers if (found := _rotation(each)) is not None}
        return ChunkBytes(
            per_token=F32 * sum(width for width, *_ in turned), per_pair=F32 * (len(rules) + full)
        )
    if engine == "onnx-cuda":
        return ChunkBytes(
            per_token=sum(window - 1 for window in windows),
            per_pair=len(windows) + len(rules),
            per_token_entry=len(rules) + full,
        )
    return ChunkBytes()


def _rotation(layer: LayerConfig) -> tuple[int, float, Hashable] | None:
    """Cosines and sines of a token, the base, and what is counted; None without RoPE."""
    if isinstance(layer, GlaConfig):
        return None if layer.rope_base is None else (layer.key_dim, layer.rope_base, None)
    if not isinstance(layer, HeadsConfig) or layer.rope_base is None:
        return None
    counted = None
    if isinstance(layer, AnchorAttentionConfig) and layer.positions == "compressed":
        counted = layer.rule
    return layer.head_dim, layer.rope_base, counted
