"""What NVIDIA's driver knows, through ctypes: devices, and the memory that a process holds.

It imports no CUDA library of Python's and makes no CUDA context, so asking costs no device memory.
The device is always the first one that CUDA shows to this process (``CUDA_VISIBLE_DEVICES``).

    find_cuda().name            # "NVIDIA H100 80GB HBM3", or None with `.looked_for`
"""

from __future__ import annotations

import ctypes
import os
import sys
import uuid
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

_NVML_INSUFFICIENT_SIZE = 7
# nvml.h, NVML_VALUE_NOT_AVAILABLE: Windows' display driver does not count memory by process.
_NOT_AVAILABLE = 2**64 - 1
# Processes come and go between asking for their number and asking for the list.
_SPARE_ENTRIES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaFound:
    """The first CUDA device that this process may use, or None, and what was looked for."""

    name: str | None
    looked_for: str


class _ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t of nvmlDeviceGetComputeRunningProcesses_v3."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def find_cuda() -> CudaFound:
    """Ask the driver for the first device; a wheel built for CUDA proves nothing by itself."""
    library = _driver_name()
    driver = _load(library)
    if driver is None:
        return CudaFound(name=None, looked_for=f"the driver's library {library}, which is missing")
    device = _first_device(driver)
    if device is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
        return CudaFound(
            name=None, looked_for=f"a device through {library}, which shows none{hint}"
        )
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, 256, device)
    return CudaFound(name=name.value.decode(), looked_for=f"a device through {library}")


def driver_version() -> int | None:
    """The driver's version of CUDA, as 13000 for 13.0, or None without a driver."""
    driver, version = _load(_driver_name()), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value


def device_memory() -> tuple[int, int] | None:
    """Bytes of the first device, (total, free), or None where NVML cannot tell."""
    with _nvml_device() as (nvml, device):
        memory = _Memory()
        if nvml is None or nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)):
            return None
        return int(memory.total), int(memory.free)


def process_bytes(pid: int) -> int | None:
    """Bytes that process `pid` holds on the first device, or None where NVML does not list it."""
    with _nvml_device() as (nvml, device):
        if nvml is None:
            return None
        for info in _compute_processes(nvml, device):
            if info.pid == pid and info.used_bytes != _NOT_AVAILABLE:
                return int(info.used_bytes)
        return None


def copy_to_host(source: int, target: int, count: int) -> None:
    """Copy `count` bytes from a device address to a host address, after all work before it.

    Raises:
        RuntimeError: the driver refuses; the number is its CUresult.
    """
    call_driver("cuMemcpyDtoH_v2", _address(target), _address(source), ctypes.c_size_t(count))


def copy_to_device(source: int, target: int, count: int) -> None:
    """Copy `count` bytes from a host address to a device address.

    Raises:
        RuntimeError: the driver refuses; the number is its CUresult.
    """
    call_driver("cuMemcpyHtoD_v2", _address(target), _address(source), ctypes.c_size_t(count))


def call_driver(name: str, *arguments: Any, refusals: Container[int] = ()) -> int:
    """Call a function of the driver, in the context that torch and ONNX Runtime use.

    Args:
        name: of the function.
        arguments: of the function, as ctypes has them.
        refusals: CUresults that the caller knows what to do with.

    Returns:
        0, or one of the refusals.

    Raises:
        RuntimeError: there is no device, or the driver refuses; the number is its CUresult.
    """
    driver, device = driver_and_device()
    context = ctypes.c_void_p()
    # This thread need not have it current.
    error: int = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    error = error or driver.cuCtxPushCurrent_v2(context)
    if not error:
        error = getattr(driver, name)(*arguments)
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        driver.cuDevicePrimaryCtxRelease_v2(device)
    if error and error not in refusals:
        raise RuntimeError(f"{name} failed with CUresult {error}")
    return error


def driver_and_device() -> tuple[Any, ctypes.c_int]:
    """The driver's library, and its number of the first device.

    Raises:
        RuntimeError: there is none.
    """
    driver = _load(_driver_name())
    device = None if driver is None else _first_device(driver)
    if driver is None or device is None:
        raise RuntimeError("memory of a CUDA device was to be used, and there is no device")
    return driver, device


def _address(of_device_or_host: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(of_device_or_host)


def _compute_processes(nvml: Any, device: Any) -> list[_ProcessInfo]:
    ask = getattr(nvml, "nvmlDeviceGetComputeRunningProcesses_v3", None)
    if ask is None:
        return []
    count = ctypes.c_uint(0)
    if ask(device, ctypes.byref(count), None) not in (0, _NVML_INSUFFICIENT_SIZE):
        return []
    count.value += _SPARE_ENTRIES
    entries = (_ProcessInfo * count.value)()
    if ask(device, ctypes.byref(count), entries):
        return []
    return list(entries[: count.value])


@contextmanager
def _nvml_device() -> Iterator[tuple[Any, Any]]:
    """NVML and its handle of the first device, or (None, None)."""
    nvml = _load("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    identity = _first_device_uuid()
    if nvml is None or identity is None or nvml.nvmlInit_v2():
        yield None, None
        return
    try:
        device = ctypes.c_void_p()
        # The driver names a slice of a GPU by the same 16 bytes; NVML wants to hear which it is.
        for prefix in ("GPU-", "MIG-"):
            name = f"{prefix}{identity}".encode()
            if nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(device)) == 0:
                yield nvml, device
                return
        yield None, None
    finally:
        nvml.nvmlShutdown()


@cache
def _first_device_uuid() -> uuid.UUID | None:
    driver = _load(_driver_name())
    device = None if driver is None else _first_device(driver)
    if driver is None or device is None:
        return None
    raw = ctypes.create_string_buffer(16)
    ask = getattr(driver, "cuDeviceGetUuid_v2", None) or driver.cuDeviceGetUuid
    return uuid.UUID(bytes=raw.raw) if ask(raw, device) == 0 else None


def _first_device(driver: Any) -> ctypes.c_int | None:
    count, device = ctypes.c_int(0), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    return None if driver.cuDeviceGet(ctypes.byref(device), 0) else device


def _driver_name() -> str:
    return "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@cache
def _load(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
