"""RMSNorm for the exporter: the reference's plain operations, which any ONNX runtime has."""

from __future__ import annotations

from longspan.kernels.rms_norm.reference import rms_norm

__all__ = ["rms_norm"]
