"""What ONNX Runtime takes on CUDA to record a model's steps. It loads and measures nothing.

taken = onnx_graph_bytes(manifest) + onnx_graph_arena_bytes(manifest)
"""

from __future__ import annotations

from longspan.bundle import Manifest
from longspan.models.config import WindowAttentionConfig

MIB = 2**20
# A second session of ONNX Runtime over the same weights, and its two CUDA graphs. Measured on an
# H100 with 1.31.1, beyond two states: 76 MiB for 12 layers (302 nodes), 300 for 64 (2,063).
SESSION_BYTES = 40 * MIB
SESSION_BYTES_PER_LAYER = 17 * MIB // 4
# Its arena, beyond two states. Of three models of 12 layers with windows of 2,048 entries 14 MiB, 7
# times the keys and values of one of them; of others nothing that could be told from the rest.
WINDOWS = 7


def onnx_graph_bytes(manifest: Manifest) -> int:
    """Bytes of the session and its graphs, outside its arena."""
    return SESSION_BYTES + len(manifest.config.layers) * SESSION_BYTES_PER_LAYER


def onnx_graph_arena_bytes(manifest: Manifest) -> int:
    """Bytes of the session's arena."""
    windows = [each for each in manifest.config.layers if isinstance(each, WindowAttentionConfig)]
    keys_and_values = max(
        (sum(spec.nbytes for spec in each.state(manifest.dtype)) for each in windows), default=0
    )
    return 2 * manifest.state_bytes + WINDOWS * keys_and_values
