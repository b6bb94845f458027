"""What computes, and where: the four engines by name. No library is imported here."""

from __future__ import annotations

from typing import Literal, get_args

from longspan.errors import BadInput

Device = Literal["cpu", "cuda"]
BackendName = Literal["torch", "onnx"]
Engine = Literal["onnx-cpu", "onnx-cuda", "torch-cpu", "torch-cuda"]


def device_of(engine: Engine) -> Device:
    """The device that an engine computes on."""
    return "cuda" if engine.endswith("cuda") else "cpu"


def check_names(*, device: str, backend: str, cache_dtype: str | None = None) -> None:
    """Check names that a caller gave, which no type checker may have seen.

    Raises:
        BadInput: one is unknown.
    """
    for what, name, known in (
        ("device", device, ("auto", *get_args(Device))),
        ("backend", backend, ("auto", *get_args(BackendName))),
        ("cache_dtype", cache_dtype, (None, "auto", "int8")),
    ):
        if name not in known:
            listed = ", ".join(map(repr, known))
            raise BadInput(f"{what} is {name!r}, which is unknown. It must be one of {listed}.")
