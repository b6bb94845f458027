"""What runs on this machine, and why: device, versions, the implementation of each op.

report = examine()
report.engine, report.reason        # "onnx-cpu", "no CUDA device was found ..."
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from longspan.engines import BackendName, Device, Engine
from longspan.runtime.backends.choice import choose_engine, find_installed
from longspan.runtime.device_memory import free_bytes, total_bytes
from longspan.runtime.nvidia import find_cuda
from longspan.runtime.recording import NO_TRITON
from longspan.sizes import format_bytes

OPS = (
    "add_norm", "anchor_attention", "causal_conv", "conba", "dequantize", "full_attention", "gla",
    "linear", "linear_conv", "moe", "quantized_linear", "rms_norm", "rope", "selective_scan",
    "ssd", "ssd_norm_linear", "swiglu", "window_attention",
)  # fmt: skip
NOT_INSTALLED = "not installed"
_PACKAGES = (
    "longspan", "numpy", "onnxruntime", "onnxruntime-gpu", "onnx", "safetensors", "tokenizers",
    "torch", "triton",
)  # fmt: skip
_LINEAR_REASON = "it reads weights as they lie in the file; Transpose and MatMul would copy them"
_CONV_REASON = "ONNX Runtime's own kernel: one node for the window of inputs and the activation"
_SSD_REASON = "ONNX Runtime's recurrent kernel: a decay a head is the shape that it was made for"
_CONBA_REASON = "ONNX Runtime has no operator for it: one token at a time"
_CONBA_CHUNKS_REASON = f"{_CONBA_REASON}, or chunks of tokens side by side without a gain"
_MOE_REASON = "one expert at a time, for the tokens that were sent to it; of standard operations"
_GLA_REASON = "ONNX Runtime's recurrent kernel takes a decay a key channel, and one a head"
_QUANTIZED_REASON = "ONNX Runtime's own kernel: it reads 8 and 4 bits as the bundle holds them"
_PLAIN_REASON = "standard operations; ONNX Runtime fuses them"
_PARTS_REASON = "the nodes of the ops that it is made of"
# What `longspan.export` writes into each graph.
_ONNX_OPS: dict[Device, dict[str, tuple[str, str]]] = {
    "cpu": {
        "add_norm": ("plain", _PLAIN_REASON),
        "anchor_attention": ("plain", _PLAIN_REASON),
        "causal_conv": ("CausalConvWithState", _CONV_REASON),
        "conba": ("Scan", _CONBA_REASON),
        "dequantize": ("plain", _PLAIN_REASON),
        "full_attention": ("plain", _PLAIN_REASON),
        "gla": ("LinearAttention", _GLA_REASON),
        "linear": ("FusedMatMul", _LINEAR_REASON),
        "linear_conv": ("parts", _PARTS_REASON),
        "moe": ("Scan", _MOE_REASON),
        "quantized_linear": ("MatMulNBits", _QUANTIZED_REASON),
        "rms_norm": ("plain", _PLAIN_REASON),
        "rope": ("plain", _PLAIN_REASON),
        "selective_scan": (
            "Scan",
            "one token at a time in the cache; LinearAttention takes decays [L, E N] and is slower",
        ),
        "ssd": ("LinearAttention", _SSD_REASON),
        "ssd_norm_linear": ("parts", _PARTS_REASON),
        "swiglu": ("plain", _PLAIN_REASON),
        "window_attention": ("plain", _PLAIN_REASON),
    },
    "cuda": {
        "add_norm": ("plain", _PLAIN_REASON),
        "anchor_attention": ("plain", _PLAIN_REASON),
        "causal_conv": ("CausalConvWithState", _CONV_REASON),
        "conba": ("Scan", _CONBA_CHUNKS_REASON),
        "dequantize": ("plain", _PLAIN_REASON),
        "full_attention": ("plain", _PLAIN_REASON),
        "gla": ("LinearAttention", _GLA_REASON),
        "linear": ("FusedMatMul", _LINEAR_REASON),
        "linear_conv": ("parts", _PARTS_REASON),
        "moe": ("Scan", _MOE_REASON),
        "quantized_linear": ("MatMulNBits", _QUANTIZED_REASON),
        "rms_norm": ("plain", _PLAIN_REASON),
        "rope": ("plain", _PLAIN_REASON),
        "selective_scan": (
            "LinearAttention",
            "ONNX Runtime's recurrent kernel; a Scan would launch kernels for every token",
        ),
        "ssd": ("LinearAttention", _SSD_REASON),
        "ssd_norm_linear": ("parts", _PARTS_REASON),
        "swiglu": ("plain", _PLAIN_REASON),
        "window_attention": ("plain", _PLAIN_REASON),
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """The device of the chosen engine, and its memory in bytes."""

    kind: Device
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpReport:
    """The implementation that runs for one op, and the reason in words."""

    op: str
    choice: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `examine` found.

    Attributes:
        device: where the engine computes.
        versions: of Python, longspan and what it builds on; "not installed" where so.
        engine: what computes.
        reason: why this engine.
        steps: how answers are computed, token by token.
        ops: one entry for each op.
    """

    device: DeviceReport
    versions: dict[str, str]
    engine: Engine
    reason: str
    steps: str
    ops: tuple[OpReport, ...]

    def text(self) -> str:
        """The device, and what computes on it; the ops and versions are tables."""
        free, total = format_bytes(self.device.free_bytes), format_bytes(self.device.total_bytes)
        return (
            f"{self.device.name} ({self.device.kind}), {free} of {total} free\n"
            f"{self.engine}: {self.reason}\n"
            f"steps: {self.steps}"
        )


def examine(
    *, device: Literal["auto"] | Device = "auto", backend: Literal["auto"] | BackendName = "auto"
) -> Report:
    """Look at this machine; torch is imported only if the chosen engine is torch's.

    Raises:
        BadInput: the device that was asked for is not there.
        MissingExtra: the backend that was asked for is not installed.
    """
    choice = choose_engine(device=device, backend=backend)
    return Report(
        device=_device_report(choice.device),
        versions=find_versions(),
        engine=choice.engine,
        reason=choice.reason,
        steps=_steps(choice.engine),
        ops=_ops(choice.engine, choice.device),
    )


def find_versions() -> dict[str, str]:
    """Versions by package, from their metadata: nothing is imported."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def _device_report(kind: Device) -> DeviceReport:
    name = find_cuda().name if kind == "cuda" else _processor()
    return DeviceReport(
        kind=kind,
        name=name or "unknown",
        total_bytes=total_bytes(kind),
        free_bytes=free_bytes(kind),
    )


def _processor() -> str:
    """The processor's name: Linux keeps it in /proc, others tell it through Python."""
    table = Path("/proc/cpuinfo")
    for line in table.read_text().splitlines() if table.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _steps(engine: Engine) -> str:
    """How a step of one token is computed."""
    if engine.endswith("-cpu"):
        return "a call each"
    if engine == "torch-cuda" and not find_installed().triton:
        return f"kernel by kernel; {NO_TRITON}"
    return "recorded once as a CUDA graph and replayed, where the plan has room for that"


def _ops(engine: Engine, device: Device) -> tuple[OpReport, ...]:
    if engine.startswith("onnx"):
        table = _ONNX_OPS[device]
        return tuple(OpReport(op=op, choice=table[op][0], reason=table[op][1]) for op in OPS)
    from longspan.kernels import choose

    choices = {op: choose(op, device_type=device, exporting=False) for op in OPS}
    return tuple(
        OpReport(op=op, choice=choice.name, reason=choice.reason) for op, choice in choices.items()
    )
