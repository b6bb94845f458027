"""What an engine holds before any model: interpreter and libraries, or a CUDA context.

It differs from card to card and from version to version, so it is measured, never assumed.

    measure_baseline("onnx-cpu")      # bytes
"""

from __future__ import annotations

import platform

from longspan.engines import Device, Engine, device_of
from longspan.runtime import machine_cache, nvidia
from longspan.runtime.device_memory import grow_in_place, memory_now
from longspan.runtime.doctor import find_versions

MEASURED_NOW = "measured in this process"
# What a process on a CPU holds before any model differs from one to the next, by 0.4 MiB as seen.
# A budget that a plan names must do for the process that is then started with it.
SPREAD_BYTES = 2**20
MEASURED_WITH_SPREAD = f"{MEASURED_NOW}, and 1 MiB by which processes differ"


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


def known_baseline(engine: Engine) -> tuple[int, str]:
    """What an engine holds before any model, for a plan that loads nothing, and its source.

    On CUDA it is the same for every process of a machine, so that it is measured once for a device
    and versions, and kept (`longspan.runtime.machine_cache`). On CPUs it is the resident set of
    this very process, and 1 MiB by which that of another may be larger.

    Returns:
        Bytes, and where they are from.
    """
    if device_of(engine) == "cpu":
        return measure_baseline(engine) + SPREAD_BYTES, MEASURED_WITH_SPREAD
    key = baseline_key(engine)
    kept = machine_cache.recall(key)
    if kept is not None:
        return kept, "measured before on this machine with these versions"
    found = measure_baseline(engine)
    if not memory_now(device_of(engine)).shared:
        machine_cache.remember(key, found)
    return found, MEASURED_NOW


def baseline_key(engine: Engine) -> str:
    """What decides an engine's baseline."""
    return machine_key(f"baseline {engine}")


def machine_key(what: str) -> str:
    """What was measured, with the device and its driver, and versions of libraries."""
    versions = ", ".join(f"{name} {version}" for name, version in find_versions().items())
    device = f"{nvidia.find_cuda().name}, CUDA driver {nvidia.driver_version()}"
    return f"{what}: {device}, {platform.machine()}, {versions}"


def _warm_up_torch(device: Device) -> None:
    import torch

    from longspan.runtime.backends.torch import run_tiny_model

    if device == "cpu":
        run_tiny_model()
        return
    grow_in_place()
    x = torch.ones(64, 64, device=device)
    # bfloat16 products load other kernels of cuBLAS than float32 ones.
    (x @ x).sum().item()
    (x.bfloat16() @ x.bfloat16()).sum().item()
