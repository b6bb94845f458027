"""Which engine runs a model on this machine, and why. It imports neither torch nor onnxruntime.

choose_engine(device="auto", backend="auto")
# EngineChoice(engine="onnx-cpu", reason="no CUDA device was found ...")
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longspan.engines import BackendName, Device, Engine, device_of
from longspan.errors import BadInput, MissingExtra
from longspan.runtime.nvidia import CudaFound, find_cuda


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """The engine that runs, and the reason in words."""

    engine: Engine
    reason: str

    @property
    def device(self) -> Device:
        """Where the engine computes."""
        return device_of(self.engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """Which packages are there, and whether they were built for CUDA."""

    torch: bool
    torch_cuda: bool
    triton: bool
    onnx_cuda: bool


def choose_engine(
    *, device: Literal["auto"] | Device = "auto", backend: Literal["auto"] | BackendName = "auto"
) -> EngineChoice:
    """Choose the engine for `device` and `backend`; what was named is what runs, or an error.

    Raises:
        BadInput: no CUDA device was found, or what is installed was built without CUDA.
        MissingExtra: torch or Triton is needed and not installed.
    """
    installed = find_installed()
    if device == "cpu":
        return _on_cpu(backend, installed, why="the CPU was asked for")
    return decide(device=device, backend=backend, installed=installed, cuda=find_cuda())


def decide(
    *,
    device: Literal["auto"] | Device,
    backend: Literal["auto"] | BackendName,
    installed: Installed,
    cuda: CudaFound,
) -> EngineChoice:
    """The rule of `choose_engine`, as a pure function of what was found."""
    if device == "cpu":
        return _on_cpu(backend, installed, why="the CPU was asked for")
    if cuda.name is None:
        if device == "auto":
            return _on_cpu(
                backend, installed, why=f"no CUDA device was found; looked for {cuda.looked_for}"
            )
        raise BadInput(
            f"The device cuda was asked for, and none was found: looked for {cuda.looked_for}. "
            "Check that nvidia-smi lists a GPU, or choose --device cpu."
        )
    usable = {
        "auto": installed.torch_cuda or installed.onnx_cuda,
        "torch": installed.torch_cuda,
        "onnx": installed.onnx_cuda,
    }[backend]
    if device == "auto" and not usable:
        return _on_cpu(
            backend,
            installed,
            why=f"{cuda.name} was found, but nothing that can use it for --backend {backend}: "
            "pip install 'longspan[cuda]'",
        )
    return _on_cuda(backend, installed, cuda.name)


def _on_cpu(
    backend: Literal["auto"] | BackendName, installed: Installed, *, why: str
) -> EngineChoice:
    if backend == "torch":
        if not installed.torch:
            raise MissingExtra(needed_for="The torch backend", package="torch", extra="cuda")
        return EngineChoice(engine="torch-cpu", reason=f"{why}; torch was asked for")
    reason = "ONNX Runtime was asked for" if backend == "onnx" else "ONNX Runtime needs no torch"
    return EngineChoice(engine="onnx-cpu", reason=f"{why}; {reason}")


def _on_cuda(
    backend: Literal["auto"] | BackendName, installed: Installed, name: str
) -> EngineChoice:
    found = f"{name} was found"
    if backend == "torch" or (backend == "auto" and installed.torch_cuda and installed.triton):
        if not installed.torch:
            raise MissingExtra(needed_for="The torch backend", package="torch", extra="cuda")
        _require(installed.torch_cuda, "torch", "Install a build of torch for CUDA")
        kernels = "Triton's kernels read fastest" if installed.triton else "without Triton, slowly"
        return EngineChoice(engine="torch-cuda", reason=f"{found}; {kernels}")
    if backend == "auto" and not installed.onnx_cuda:
        raise MissingExtra(needed_for="Running on CUDA", package="torch and triton", extra="cuda")
    _require(installed.onnx_cuda, "onnxruntime", "Install onnxruntime-gpu in its place")
    reason = "torch and Triton are not both there for CUDA" if backend == "auto" else "asked for"
    return EngineChoice(engine="onnx-cuda", reason=f"{found}; ONNX Runtime: {reason}")


def _require(built_for_cuda: bool, package: str, step: str) -> None:
    if not built_for_cuda:
        raise BadInput(
            f"The device cuda was asked for with {package}, and the {package} that is installed "
            f"was built without CUDA. {step}, or choose --device cpu."
        )


def find_installed() -> Installed:
    """Look at the packages' files; importing torch to ask it would cost 218 MiB."""
    torch, onnx = _folder("torch"), _folder("onnxruntime")
    return Installed(
        torch=torch is not None,
        torch_cuda=torch is not None and _built_for_cuda(torch / "version.py"),
        triton=_folder("triton") is not None,
        onnx_cuda=onnx is not None and any(onnx.glob("capi/*onnxruntime_providers_cuda.*")),
    )


def _built_for_cuda(version_file: Path) -> bool:
    """Torch's own version.py says ``cuda: Optional[str] = '13.0'``, or None."""
    text = version_file.read_text(encoding="utf-8") if version_file.is_file() else ""
    return re.search(r"^cuda\b[^=]*= *['\"]", text, re.MULTILINE) is not None


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
