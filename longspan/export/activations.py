"""Bytes that a chunk of L tokens holds at its peak, layer by layer, for each engine.

Each formula counts the tensors that live at once where a layer holds most; letters as in
`longspan.models`. Logits, state and weights are planned elsewhere.

onnx-cpu is fitted to ONNX Runtime 1.31.1 with its arena (growth of the resident set, models of 2 to
4 layers, L 64 to 2,048). The live tensors of a Mamba layer are 10 E + 3 D float32 numbers a token,
of an MLP 5 F + 3 D, of attention 3 scores and 6 bytes of masks a pair; the arena adds 5 to 20%,
which the coefficients hold. Mamba-2 was measured at 4.8 for each channel of the convolution, 4.2 E
and 3 D, with the arena. The other engines are counted from their code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.kernels.ssd.scratch import CHUNK_TOKENS
from longspan.models.config import (
    AttentionConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    ModelConfig,
)
from longspan.tensors import DTYPE_BYTES, DType

F32, I64 = DTYPE_BYTES["float32"], DTYPE_BYTES["int64"]
# The scan's scratch has at most 64 chunks up to 16,384 tokens, and one for each 256 beyond.
SCAN_CHUNKS, SCAN_CHUNK_TOKENS = 64, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """Attention's L (L + W - 1) scores as parts of a `ChunkBytes`."""

    window: int
    bytes: int

    def added_to(self, *, fixed: int, per_token: int) -> ChunkBytes:
        return ChunkBytes(
            fixed=fixed,
            per_token=per_token + self.bytes * (self.window - 1),
            per_pair=self.bytes,
        )


def chunk_bytes(config: ModelConfig, dtype: DType) -> dict[Engine, tuple[ChunkBytes, ...]]:
    """For each engine one entry a layer, and one last for the residual, the norm and the tokens.

    Args:
        config: the layers.
        dtype: dtype of the weights.
    """
    engines: tuple[Engine, ...] = ("onnx-cpu", "onnx-cuda", "torch-cpu", "torch-cuda")
    return {
        engine: (
            *(_layer(layer, config.d_model, engine, dtype) for layer in config.layers),
            _rest(config, engine, dtype),
        )
        for engine in engines
    }


def _layer(layer: LayerConfig, width: int, engine: Engine, dtype: DType) -> ChunkBytes:
    if isinstance(layer, MambaConfig):
        return _mamba(layer, width, dtype)[engine]
    if isinstance(layer, Mamba2Config):
        return _mamba2(layer, width, dtype)[engine]
    if isinstance(layer, AttentionConfig):
        return _attention(layer, width, dtype)[engine]
    return _mlp(layer, width, dtype)[engine]


def _mamba(layer: MambaConfig, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    E, N, D, b = layer.d_inner, layer.d_state, width, DTYPE_BYTES[dtype]
    low = layer.dt_rank + 2 * N
    scratch = F32 * E * (N + 1)
    # LinearAttention reads a key and a decay for every channel and state, all in float32.
    pairs = 3 * F32 * E * N
    return {
        "onnx-cpu": ChunkBytes(per_token=F32 * (11 * E + 2 * D + low)),
        "onnx-cuda": ChunkBytes(per_token=pairs + F32 * (8 * E + low) + b * (5 * E + D + low)),
        "torch-cpu": ChunkBytes(
            fixed=_widened(2 * E * D, dtype), per_token=F32 * (10 * E + D + low)
        ),
        "torch-cuda": ChunkBytes(
            fixed=SCAN_CHUNKS * scratch,
            per_token=b * (5 * E + D + low) + -(-scratch // SCAN_CHUNK_TOKENS),
        ),
    }


def _mamba2(layer: Mamba2Config, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    H, E, D, b = layer.n_heads, layer.d_inner, width, DTYPE_BYTES[dtype]
    channels = layer.conv_channels
    rows = E + channels + H
    # One chunk's scratch: a state for each head, a step and a sum for each head and token.
    scratch = F32 * H * (layer.d_state * layer.head_dim + 2 * CHUNK_TOKENS)
    return {
        "onnx-cpu": ChunkBytes(per_token=F32 * (5 * channels + 5 * E + H + 2 * D)),
        # LinearAttention reads and writes float32, and so does the gated norm.
        "onnx-cuda": ChunkBytes(
            per_token=F32 * (2 * channels + 3 * E + 2 * H) + b * (rows + 2 * channels + E + D)
        ),
        "torch-cpu": ChunkBytes(
            fixed=_widened(rows * D, dtype) + 5 * F32 * E * layer.d_state,
            per_token=F32 * (rows + 6 * channels + D),
        ),
        "torch-cuda": ChunkBytes(
            fixed=scratch,
            per_token=b * (rows + channels + E + D) + max(3 * F32 * E, -(-scratch // CHUNK_TOKENS)),
        ),
    }


def _attention(layer: AttentionConfig, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    H, G, P, W = layer.n_heads, layer.n_kv_heads, layer.head_dim, layer.window
    D, b = width, DTYPE_BYTES[dtype]
    rows = (H + 2 * G) * P
    past = 2 * (W - 1) * G * P
    return {
        "onnx-cpu": _Pairs(window=W, bytes=(18 * H * F32) // 5 + 7).added_to(
            fixed=F32 * past, per_token=F32 * (7 * rows + 3 * D)
        ),
        "onnx-cuda": _Pairs(window=W, bytes=3 * H * b + 7).added_to(
            fixed=b * past, per_token=(b + F32) * 3 * rows + b * D
        ),
        "torch-cpu": _Pairs(window=W, bytes=3 * H * F32 + 2).added_to(
            fixed=2 * F32 * past + _widened(rows * D, dtype),
            per_token=F32 * (5 * rows + D),
        ),
        "torch-cuda": ChunkBytes(fixed=b * past, per_token=3 * b * rows + 4 * F32 * H * P + b * D),
    }


def _mlp(layer: MlpConfig, width: int, dtype: DType) -> Mapping[Engine, ChunkBytes]:
    F, D, b = layer.d_ff, width, DTYPE_BYTES[dtype]
    return {
        "onnx-cpu": ChunkBytes(per_token=F32 * (11 * F // 2 + 2 * D)),
        "onnx-cuda": ChunkBytes(per_token=b * (5 * F + 2 * D)),
        "torch-cpu": ChunkBytes(fixed=_widened(2 * F * D, dtype), per_token=F32 * (4 * F + D)),
        "torch-cuda": ChunkBytes(per_token=b * (4 * F + D)),
    }


def _rest(config: ModelConfig, engine: Engine, dtype: DType) -> ChunkBytes:
    """The float32 residual before and after a layer, the layer's output, and the token ids."""
    D, b = config.d_model, DTYPE_BYTES[dtype]
    per_token = {
        "onnx-cpu": F32 * D + I64,
        "onnx-cuda": (2 * F32 + b) * D + I64,
        "torch-cpu": 3 * F32 * D + I64,
        "torch-cuda": (2 * F32 + 2 * b) * D + I64,
    }[engine]
    head = _widened(config.vocab_size * D, dtype) if engine == "torch-cpu" else 0
    return ChunkBytes(fixed=head, per_token=per_token)


def _widened(numbers: int, dtype: DType) -> int:
    """The float32 copy that torch makes of a weight of lower precision, on the CPU, to use it."""
    return 0 if dtype == "float32" else F32 * numbers
