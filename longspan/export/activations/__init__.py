"""Bytes that a chunk of L tokens holds at its peak, layer by layer, for each engine.

Each formula counts the tensors that live at once where a layer holds most; letters as in
`longspan.models`. Logits, state and weights are planned elsewhere.

onnx-cpu is counted from the graph: nearly always what a projection gave beside the parts that it is
cut into. ONNX Runtime 1.31.1 allocated 0.8 to 1.0 of it in chunks of 1,024 tokens, whatever the
layer's sizes and the weights' dtype; where a layer is narrower than the model, 0.7. Its arena is
planned elsewhere. Where all tokens go to the same experts, a mixture of experts takes as much as is
counted. The rest is counted from the code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.attention import (
    anchor_attention,
    full_attention,
    window_attention,
)
from longspan.export.activations.conba import conba
from longspan.export.activations.gla import gla
from longspan.export.activations.mamba import mamba, mamba2
from longspan.export.activations.mlp import mlp, moe
from longspan.export.activations.numbers import F32, I64, widened
from longspan.export.activations.quantized import scratch_bytes, with_scratch
from longspan.export.activations.shared import shared_bytes
from longspan.models.config import (
    AnchorAttentionConfig,
    ConbaConfig,
    FullAttentionConfig,
    GlaConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    WindowAttentionConfig,
)
from longspan.tensors import DTYPE_BYTES, DType

# Each takes (layer, d_model, dtype of the weights) and tells the bytes of a chunk for each engine.
Formula = Callable[[Any, int, DType], Mapping[Engine, ChunkBytes]]
FORMULAS: Mapping[type[LayerConfig], Formula] = {
    MambaConfig: mamba,
    Mamba2Config: mamba2,
    ConbaConfig: conba,
    GlaConfig: gla,
    WindowAttentionConfig: window_attention,
    FullAttentionConfig: full_attention,
    AnchorAttentionConfig: anchor_attention,
    MlpConfig: mlp,
    MoeConfig: moe,
}


def chunk_bytes(config: ModelConfig, dtype: DType) -> dict[Engine, tuple[ChunkBytes, ...]]:
    """For each engine one entry a layer, and one last for the residual, the norm and the tokens.

    Args:
        config: the layers.
        dtype: dtype of the weights.
    """
    engines: tuple[Engine, ...] = ("onnx-cpu", "onnx-cuda", "torch-cpu", "torch-cuda")
    layers = _formulas(config, dtype)
    if config.quantization is not None:
        layers = with_scratch(layers, _formulas(config, "float32"), config, dtype)
    return {
        engine: (*(layer[engine] for layer in layers), _rest(config, engine, dtype))
        for engine in engines
    }


def _formulas(config: ModelConfig, dtype: DType) -> list[Mapping[Engine, ChunkBytes]]:
    return [FORMULAS[type(layer)](layer, config.d_model, dtype) for layer in config.layers]


def _rest(config: ModelConfig, engine: Engine, dtype: DType) -> ChunkBytes:
    """The float32 residual, a layer's output that is to be added to it, and the token ids.

    On torch-cuda the sum takes the residual's place, elsewhere one of its own. There the norm that
    a layer reads lives as long as the layer computes; its output is counted by the layer. What
    layers share comes beside them.
    """
    D, b = config.d_model, DTYPE_BYTES[dtype]
    per_token = {
        "onnx-cpu": F32 * D + I64,
        "onnx-cuda": F32 * D + 5 * I64,
        "torch-cpu": 3 * F32 * D + I64,
        "torch-cuda": (F32 + b) * D + I64,
    }[engine]
    head = widened(config.vocab_size * D, dtype) if engine == "torch-cpu" else 0
    if head and config.quantization is not None and config.quantization.head:
        head = scratch_bytes(config.quantization, config.vocab_size, D, engine, dtype)
    if engine == "onnx-cpu":
        head += sum(_widened_early(layer, dtype) for layer in config.layers)
    shared = shared_bytes(config, engine)
    return replace(shared, fixed=head, per_token=per_token + shared.per_token)


def _widened_early(layer: LayerConfig, dtype: DType) -> int:
    """The float32 copy of a state in 16 bits, but for caches, made for all layers as early."""
    specs = layer.state(dtype)
    return sum(
        widened(spec.nbytes // DTYPE_BYTES[dtype], dtype)
        for spec in specs
        if spec.dtype == dtype and spec.counter is None
    )
