"""How much memory this process holds, now and at most, and how much a device has left.

On the CPU it is the resident set, as the kernel counts it; on CUDA what the driver counts for
this process. Every reading says where it comes from. It knows nothing of models, and imports
torch never: where torch is already loaded, its allocator is asked too.

    with PeakWatch("cpu") as watch:
        ...
        watch.sample()
    watch.peak                    # Reading(bytes=..., source="...")
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from longspan.engines import Device
from longspan.errors import DoesNotFit
from longspan.runtime import cgroup, nvidia
from longspan.sizes import format_bytes

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Bytes that the process holds, and in words who counted them.

    `shared` is True where only the sum over all processes of the device could be had.
    """

    bytes: int
    source: str
    shared: bool = False


def memory_now(device: Device) -> Reading:
    """What this process holds on `device` at this moment."""
    if device == "cpu":
        return Reading(bytes=int(psutil.Process().memory_info().rss), source="resident set")
    held = nvidia.process_bytes(os.getpid())
    if held is not None:
        return Reading(bytes=held, source="the driver's count for this process (NVML)")
    total, free = _cuda_total_and_free()
    source = "all processes on the device: the driver does not list this one (NVML)"
    return Reading(bytes=total - free, source=source, shared=True)


def memory_peak(device: Device) -> Reading:
    """The most this process has held on `device`.

    The CPU's kernel keeps it since the process began, or since the last `reset_peak`. The driver
    of a GPU keeps no peak: it is taken as what the process holds now, plus what torch's allocator
    held more at its peak than it does now. `PeakWatch` sees more.
    """
    return _cpu_peak() if device == "cpu" else _cuda_peak()


def reset_peak() -> bool:
    """Let the kernel's peak of the resident set begin anew; False where it cannot.

    Linux alone can, through ``/proc/self/clear_refs``, where the process may write it.
    """
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def free_bytes(device: Device) -> int:
    """Bytes that `device` has left for this process, limits of its container among them."""
    if device == "cuda":
        return _cuda_total_and_free()[1]
    machine = int(psutil.virtual_memory().available)
    group = cgroup.free_bytes()
    return machine if group is None else min(machine, group)


def total_bytes(device: Device) -> int:
    """Bytes that `device` has, or the container's limit where that is less."""
    if device == "cuda":
        return _cuda_total_and_free()[0]
    machine = int(psutil.virtual_memory().total)
    group = cgroup.total_bytes()
    return machine if group is None else min(machine, group)


def cap_allocator(limit_bytes: int) -> None:
    """Cap torch's CUDA allocator at what all else of this process leaves of a limit.

    Args:
        limit_bytes: what the whole process may hold on the device, on which torch has begun.

    Raises:
        DoesNotFit: the CUDA context and its libraries alone hold more.
    """
    torch = _torch_on_cuda()
    assert torch is not None, "torch has not begun to use CUDA"
    context = max(0, memory_now("cuda").bytes - torch.cuda.memory_reserved(0))
    if context >= limit_bytes:
        raise DoesNotFit(
            f"The CUDA context alone holds {format_bytes(context)}, and the limit is "
            f"{format_bytes(limit_bytes)}. Give a larger --budget, or choose --device cpu."
        )
    total = torch.cuda.mem_get_info(0)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, (limit_bytes - context) / total), 0)


def torch_peak() -> int | None:
    """The most bytes of tensors that torch's CUDA allocator held, or None where it is not used."""
    torch = _torch_on_cuda()
    return None if torch is None else int(torch.cuda.max_memory_allocated())


class PeakWatch:
    """The highest memory seen on `device` between entering and the last `sample`.

    Args:
        device: where to look. On Linux's CPU the kernel itself keeps the peak; elsewhere it is the
            highest of the samples, which should be taken at the end of every chunk.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.peak = Reading(bytes=0, source="no sample taken")
        self._kernel_keeps_it = False

    def __enter__(self) -> PeakWatch:
        self._kernel_keeps_it = self.device == "cpu" and reset_peak()
        torch = _torch_on_cuda()
        if self.device == "cuda" and torch is not None:
            torch.cuda.reset_peak_memory_stats()
        self.sample()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sample()

    def sample(self) -> Reading:
        """Look now; returns the highest so far."""
        seen = self._look()
        if seen.bytes >= self.peak.bytes:
            self.peak = seen
        return self.peak

    def _look(self) -> Reading:
        if self.device == "cuda" or self._kernel_keeps_it:
            return memory_peak(self.device)
        now = memory_now("cpu")
        return Reading(bytes=now.bytes, source="highest sample of the resident set")


def _cpu_peak() -> Reading:
    if sys.platform == "win32":
        peak = int(psutil.Process().memory_info().peak_wset)
        return Reading(bytes=peak, source="peak working set")
    for line in _STATUS.read_text().splitlines() if _STATUS.is_file() else ():
        if line.startswith("VmHWM:"):
            return Reading(bytes=int(line.split()[1]) * 1024, source="peak resident set (VmHWM)")
    import resource

    # getrusage(2): kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Reading(bytes=peak, source="peak resident set (getrusage)")


def _cuda_peak() -> Reading:
    now = memory_now("cuda")
    torch = _torch_on_cuda()
    if torch is None:
        return now
    above = torch.cuda.max_memory_reserved() - torch.cuda.memory_reserved()
    source = f"{now.source} and torch's own peak"
    return Reading(bytes=now.bytes + above, source=source, shared=now.shared)


def _cuda_total_and_free() -> tuple[int, int]:
    """Bytes of the whole device, from NVML, or from CUDA where there is no NVML (Jetson)."""
    memory = nvidia.device_memory()
    torch = _torch_on_cuda()
    if memory is None and torch is not None:
        free, total = torch.cuda.mem_get_info()
        return int(total), int(free)
    if memory is None:
        # Boards whose GPU has no memory of its own have no NVML: the machine's is the device's.
        machine = psutil.virtual_memory()
        return int(machine.total), int(machine.available)
    return memory


def _torch_on_cuda() -> Any:
    """Torch, if something has imported it and used CUDA through it."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None
