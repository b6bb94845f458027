"""RoPE for the exporter: the reference's plain operations, which any ONNX runtime has."""

from __future__ import annotations

from longspan.kernels.rope.reference import rope

__all__ = ["rope"]
