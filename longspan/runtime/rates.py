"""What a CUDA device copies from the host and multiplies in a second, measured here.

A plan that streams weights weighs the one against the other. Both differ by more than ten times
between machines, so neither is assumed. The probe takes well under a second and `PROBE_BYTES` of
the device's memory, which it gives back. What it found is kept (`longspan.runtime.machine_cache`).

    known_rates("bfloat16").copied_bytes
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from longspan.runtime import machine_cache
from longspan.runtime.baseline import machine_key
from longspan.runtime.device_memory import grow_in_place
from longspan.runtime.plan_speed import Rates
from longspan.tensors import DType

if TYPE_CHECKING:
    import torch

# Copies have reached their rate by then (55 GB/s on an H100 from 16 MiB up).
COPY_BYTES = 2**24
# A product of matrices like a layer's: [ROWS, WIDTH] by [WIDTH, COLUMNS].
ROWS, WIDTH, COLUMNS = 2048, 2048, 4096
PROBE_BYTES = COPY_BYTES + 4 * (ROWS * WIDTH + WIDTH * COLUMNS + ROWS * COLUMNS)
ROUNDS, CALLS = 5, 4


def known_rates(dtype: DType) -> Rates:
    """The rates of the first CUDA device, measured once on this machine with these versions.

    Args:
        dtype: of the weights.
    """
    names = ("copied", f"operations {dtype}")
    keys = [machine_key(f"{name} in a second") for name in names]
    kept = [machine_cache.recall(key) for key in keys]
    if kept[0] and kept[1]:
        return Rates(copied_bytes=float(kept[0]), operations=float(kept[1]))
    found = measure_rates(dtype)
    for key, value in zip(keys, (found.copied_bytes, found.operations), strict=True):
        machine_cache.remember(key, round(value))
    return found


def measure_rates(dtype: DType) -> Rates:
    """Measure the first CUDA device.

    Args:
        dtype: of the weights.
    """
    import torch

    grow_in_place()
    copied = _seconds(torch, _copy(torch))
    multiplied = _seconds(torch, _product(torch, getattr(torch, dtype)))
    torch.cuda.empty_cache()
    operations = 2 * ROWS * WIDTH * COLUMNS
    return Rates(copied_bytes=COPY_BYTES / copied, operations=operations / multiplied)


def shares_host_memory() -> bool:
    """Whether the first CUDA device's memory is the host's: then nothing is gained by streaming."""
    import torch

    # Torch begins to use CUDA for it.
    grow_in_place()
    return bool(torch.cuda.get_device_properties(0).is_integrated)


def _copy(torch: Any) -> Callable[[], torch.Tensor]:
    """A copy of `COPY_BYTES` from pinned host memory."""
    host = torch.ones(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(host, device="cuda", pin_memory=False)
    return lambda: target.copy_(host, non_blocking=True)


def _product(torch: Any, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """A product of random matrices."""
    left = torch.randn(ROWS, WIDTH, device="cuda", dtype=dtype)
    right = torch.randn(COLUMNS, WIDTH, device="cuda", dtype=dtype)
    return lambda: left @ right.T


def _seconds(torch: Any, call: Callable[[], torch.Tensor]) -> float:
    """Seconds that the device takes for a call: the median of some rounds, after one call."""
    call()
    taken = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3 / CALLS)
    return float(median(taken))
