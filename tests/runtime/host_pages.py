"""Pages of a `DeviceHeap` that lie in host memory, or nowhere."""

from __future__ import annotations

import ctypes

UNIT = 2**12


class HostPages:
    """See `longspan.runtime.device_heap.Pages`.

    Args:
        room_bytes: that there are; behind the addresses is memory.

    Attributes:
        base, unit: as `Pages` has them.
        grown: by how much each `grow` that holds did.
        closed: whether `close` was called.
    """

    def __init__(self, room_bytes: int) -> None:
        self._memory = ctypes.create_string_buffer(room_bytes + UNIT)
        self._room_bytes = room_bytes
        self.base = -(-ctypes.addressof(self._memory) // UNIT) * UNIT
        self.unit = UNIT
        self.grown: list[int] = []
        self.closed = False

    def grow(self, size_bytes: int) -> bool:
        """Count them, if there are as many."""
        assert size_bytes % UNIT == 0
        if sum(self.grown) + size_bytes > self._room_bytes:
            return False
        self.grown.append(size_bytes)
        return True

    def shrink(self) -> None:
        """Forget the last ones."""
        self.grown.pop()

    def close(self) -> None:
        """Forget all."""
        assert not self.closed, "it is closed once"
        self.grown.clear()
        self.closed = True
