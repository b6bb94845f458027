"""Sum and norm for the exporter: the reference's plain operations, which any ONNX runtime has."""

from __future__ import annotations

from longspan.kernels.add_norm.reference import add_norm

__all__ = ["add_norm"]
