"""What ONNX Runtime's session holds on CPUs beside weights and state. It measures nothing.

session_bytes(manifest)
"""

from __future__ import annotations

from collections.abc import Mapping

from longspan.bundle import Manifest
from longspan.models.config import (
    AnchorAttentionConfig,
    ConbaConfig,
    FullAttentionConfig,
    GlaConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    MoeConfig,
    WindowAttentionConfig,
)

MIB = 2**20
# Measured with onnxruntime 1.31.1 after one token: 4.6 MiB for 8 layers, 8.7 MiB for 16, half of
# them MLPs; 12 for 64 MLPs; for the nodes of 64 experts in 4 bits 11.1, for those of 16 4.1.
SESSION_BYTES = 3 * MIB
SESSION_BYTES_PER_MIXER, SESSION_BYTES_PER_MLP = 60 * MIB // 100, 10 * MIB // 100
SESSION_BYTES_PER_EXPERT = 19 * MIB // 100
# Beyond the first eight a mixer takes less. Measured as what models of 24 to 96 layers of width 256
# held more than those of 8 and 12: 0.25 MiB for Mamba, 0.18 for Mamba-2, 0.4 for windows, full
# attention and Conba, 0.5 for anchors, 0.3 for gated linear attention and 0.8 for retention.
FIRST_MIXERS = 8
SESSION_BYTES_PER_FURTHER: Mapping[type[LayerConfig], int] = {
    MambaConfig: 30 * MIB // 100,
    Mamba2Config: 25 * MIB // 100,
    WindowAttentionConfig: 40 * MIB // 100,
    FullAttentionConfig: 45 * MIB // 100,
    ConbaConfig: 50 * MIB // 100,
    AnchorAttentionConfig: 60 * MIB // 100,
    GlaConfig: 70 * MIB // 100,
}


def session_bytes(manifest: Manifest) -> int:
    """What ONNX Runtime holds of a graph's nodes."""
    layers, stored = manifest.config.layers, manifest.quantization
    mixers = [type(layer) for layer in layers if not isinstance(layer, MlpConfig | MoeConfig)]
    mixtures = [layer for layer in layers if isinstance(layer, MoeConfig)]
    # Packed ones have nodes of their own.
    experts = sum(layer.n_experts for layer in mixtures) if stored and stored.experts else 0
    return (
        SESSION_BYTES
        + SESSION_BYTES_PER_MIXER * len(mixers[:FIRST_MIXERS])
        + sum(SESSION_BYTES_PER_FURTHER[kind] for kind in mixers[FIRST_MIXERS:])
        + SESSION_BYTES_PER_MLP * (len(layers) - len(mixers))
        + SESSION_BYTES_PER_EXPERT * experts
    )
