"""What an engine holds before any model: interpreter and libraries, or a CUDA context.

It differs from card to card and from version to version, so it is measured, never assumed.

    measure_baseline("onnx-cpu")      # bytes
"""

from __future__ import annotations

from longspan.engines import Device, Engine, device_of
from longspan.runtime.device_memory import memory_now


def measure_baseline(engine: Engine) -> int:
    """Load what `engine` needs, use it once, and read what the process holds on its device.

    One small matrix product is made, so that cuBLAS' workspace and ONNX Runtime's threads and
    tables count. Nothing is given back: the engine needs it all again.

    Returns:
        Bytes: the resident set for CPU engines, the driver's count for CUDA ones.
    """
    import tokenizers  # noqa: F401  # every engine's runtime loads it before the model

    device = device_of(engine)
    if engine.startswith("torch"):
        _warm_up_torch(device)
    else:
        from longspan.runtime.backends.onnx_session import warm_up_onnx

        warm_up_onnx(device)
    return memory_now(device).bytes


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
