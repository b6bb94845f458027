"""Checkpoint to bundle: weights, graphs, tokenizer, verification. It needs torch and onnx."""

from __future__ import annotations

from longspan.errors import MissingExtra

try:
    import onnx as _onnx
    import onnxscript as _onnxscript
    import torch as _torch
except ModuleNotFoundError as error:
    raise MissingExtra(
        needed_for="Exporting a checkpoint", package=error.name or "torch", extra="export"
    ) from error

from longspan.export.bundle_writer import export_bundle
from longspan.export.report import ExportReport

__all__ = ["ExportReport", "export_bundle"]

del _onnx, _onnxscript, _torch
