"""Memory of the first CUDA device behind a range of addresses, page by page, through the driver.

    pages = DevicePages()
    pages.grow(8 * pages.unit)     # bytes from pages.base on
    pages.close()

See CUDA's driver API, "Virtual Memory Management".
"""

from __future__ import annotations

import ctypes

from longspan.runtime.device_memory import total_bytes
from longspan.runtime.nvidia import call_driver, driver_and_device

_PINNED, _ON_DEVICE, _READ_WRITE = 1, 1, 3
_OUT_OF_MEMORY = 2


class _Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("kind", ctypes.c_int), ("device", ctypes.c_int))


class _Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("handles", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class DevicePages:
    """See `longspan.runtime.device_heap.Pages`.

    Raises:
        RuntimeError: there is no device, or its driver has no virtual addresses.
    """

    def __init__(self) -> None:
        _, device = driver_and_device()
        self._location = _Location(_ON_DEVICE, device.value)
        self._properties = _Properties(kind=_PINNED, location=self._location)
        unit, base = ctypes.c_size_t(), ctypes.c_uint64()
        described = ctypes.byref(self._properties)
        call_driver("cuMemGetAllocationGranularity", ctypes.byref(unit), described, 0)
        self.unit = unit.value
        self._range_bytes = total_bytes("cuda") // self.unit * self.unit
        size, nothing = ctypes.c_size_t(self._range_bytes), ctypes.c_uint64(0)
        call_driver(
            "cuMemAddressReserve", ctypes.byref(base), size, ctypes.c_size_t(0), nothing, nothing
        )
        self.base = base.value
        # Bytes, and the driver's handle, of what lies behind the addresses.
        self._mapped: list[tuple[int, ctypes.c_uint64]] = []

    def grow(self, size_bytes: int) -> bool:
        """See `Pages.grow`."""
        held = sum(size for size, _ in self._mapped)
        if held + size_bytes > self._range_bytes:
            return False
        handle, size, nothing = ctypes.c_uint64(), ctypes.c_size_t(size_bytes), ctypes.c_uint64(0)
        described = ctypes.byref(self._properties)
        if call_driver(
            "cuMemCreate", ctypes.byref(handle), size, described, nothing,
            refusals=(_OUT_OF_MEMORY,),
        ):  # fmt: skip
            return False
        address = ctypes.c_uint64(self.base + held)
        call_driver("cuMemMap", address, size, ctypes.c_size_t(0), handle, nothing)
        access = _Access(self._location, _READ_WRITE)
        call_driver("cuMemSetAccess", address, size, ctypes.byref(access), ctypes.c_size_t(1))
        self._mapped.append((size_bytes, handle))
        return True

    def shrink(self) -> None:
        """See `Pages.shrink`; it waits until the device is through with the memory."""
        size_bytes, handle = self._mapped.pop()
        address = self.base + sum(size for size, _ in self._mapped)
        call_driver("cuCtxSynchronize")
        call_driver("cuMemUnmap", ctypes.c_uint64(address), ctypes.c_size_t(size_bytes))
        call_driver("cuMemRelease", handle)

    def close(self) -> None:
        """See `Pages.close`; a second call does nothing."""
        while self._mapped:
            self.shrink()
        if self._range_bytes:
            size = ctypes.c_size_t(self._range_bytes)
            call_driver("cuMemAddressFree", ctypes.c_uint64(self.base), size)
            self._range_bytes = 0
