"""What computes, and where: the four engines by name. No library is imported here."""

from __future__ import annotations

from typing import Literal

Device = Literal["cpu", "cuda"]
BackendName = Literal["torch", "onnx"]
Engine = Literal["onnx-cpu", "onnx-cuda", "torch-cpu", "torch-cuda"]


def device_of(engine: Engine) -> Device:
    """The device that an engine computes on."""
    return "cuda" if engine.endswith("cuda") else "cpu"
