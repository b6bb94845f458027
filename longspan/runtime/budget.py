"""The budget: bytes that the whole process may hold on its device.

Budget("2GiB").bytes        # 2147483648
Budget.default("cpu")       # nine tenths of what is free
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.engines import Device
from longspan.runtime.device_memory import free_bytes, memory_now
from longspan.sizes import format_bytes, parse_bytes


@dataclass(frozen=True, slots=True, init=False)
class Budget:
    """Bytes that the whole process may hold on its device, as kernel or driver counts them.

    Args:
        size: such as ``"2GiB"``, ``"512MB"``, or a number of bytes.

    Raises:
        BadInput: `size` is no size, or is not positive.
    """

    bytes: int

    def __init__(self, size: str | int) -> None:
        object.__setattr__(self, "bytes", parse_bytes(size))

    @classmethod
    def default(cls, device: Device) -> Budget:
        """Nine tenths of what is free on `device`, what this process holds already among it."""
        held = memory_now(device)
        # What all processes of a device hold together is not ours to give.
        ours = 0 if held.shared else held.bytes
        return cls((free_bytes(device) + ours) * 9 // 10)

    def __str__(self) -> str:
        return format_bytes(self.bytes)
