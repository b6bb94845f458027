"""What an engine holds before any model: interpreter and libraries, or a CUDA context.

It differs from card to card and from version to version, so it is measured, never assumed.

    measure_baseline("onnx-cpu")      # bytes
"""

from __future__ import annotations

from typing import Any

import numpy as np

from longspan.bundle import Engine
from longspan.runtime.backends import Device
from longspan.runtime.device_memory import memory_now

# The ONNX model y = MatMul(x, x), x float32 [64, 64], opset 17, as onnx.helper serialises it.
_MATMUL_64 = (
    b'\x08\x08:@\n\x11\n\x01x\n\x01x\x12\x01y"\x06MatMul\x12\x01gZ\x13\n\x01x\x12\x0e\n\x0c\x08\x01'
    b"\x12\x08\n\x02\x08@\n\x02\x08@b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08@\n\x02\x08@"
    b"B\x04\n\x00\x10\x11"
)


def measure_baseline(engine: Engine) -> int:
    """Load what `engine` needs, use it once, and read what the process holds on its device.

    One small matrix product is made, so that cuBLAS' workspace and ONNX Runtime's threads and
    tables count. Nothing is given back: the engine needs it all again.

    Returns:
        Bytes: the resident set for CPU engines, the driver's count for CUDA ones.
    """
    import tokenizers  # noqa: F401  # every engine's runtime loads it before the model

    device: Device = "cuda" if engine.endswith("cuda") else "cpu"
    if engine.startswith("torch"):
        _warm_up_torch(device)
    else:
        warm_up_onnx(device)
    return memory_now(device).bytes


def warm_up_onnx(device: Device) -> None:
    """Run a small product through ONNX Runtime on `device`.

    Raises:
        BadInput: onnxruntime cannot use CUDA here.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if device == "cuda":
        preload_cuda_libraries()
    session: Any = ort.InferenceSession(_MATMUL_64, options, providers=[provider])
    if device == "cuda":
        from longspan.runtime.backends.onnx_session import require_cuda

        require_cuda(session)
    session.run(None, {"x": np.ones((64, 64), np.float32)})


def preload_cuda_libraries() -> None:
    """Let onnxruntime find the CUDA libraries of torch's wheels, which importing torch loads."""
    import onnxruntime as ort

    from longspan.runtime.backends.choice import find_installed

    if find_installed().torch_cuda:
        import torch  # noqa: F401
    ort.preload_dlls()


def _warm_up_torch(device: Device) -> None:
    import torch

    from longspan.runtime.backends.torch import run_tiny_model

    if device == "cpu":
        run_tiny_model()
        return
    x = torch.ones(64, 64, device=device)
    # bfloat16 products load other kernels of cuBLAS than float32 ones.
    (x @ x).sum().item()
    (x.bfloat16() @ x.bfloat16()).sum().item()
