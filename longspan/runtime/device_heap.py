"""A heap in device memory that grows at its end, for what ONNX Runtime allocates on CUDA.

ONNX Runtime's own arena takes a block for each size that no free piece holds, and never joins two:
it held up to 2.3 times the tensors of a chunk. Here all pieces lie in one range of addresses, free
neighbours are one piece, and only the range's end grows, by pages of the driver: what is held is
what lived at once, and little more.

    heap = DeviceHeap(DevicePages(), limit_bytes=2**30)
    heap.hold(2**20)               # the room of a chunk, once: its pieces will not grow the heap
    address = heap.take(4096)      # or None: the limit is met
    heap.give_back(address)

It computes with addresses alone; `longspan.runtime.device_pages` maps memory to them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from threading import Lock
from typing import Protocol

# Where a piece may begin: what cudaMalloc promises, and kernels' widest loads need.
ALIGNMENT = 256


class Pages(Protocol):
    """A range of device addresses with memory behind its first bytes.

    Attributes:
        base: the first address.
        unit: by a multiple of how many bytes it grows.
    """

    base: int
    unit: int

    def grow(self, size_bytes: int) -> bool:
        """Put memory behind the next `size_bytes`, a multiple of `unit`; False if there is none."""

    def shrink(self) -> None:
        """Give back what the last `grow` that still holds put there."""

    def close(self) -> None:
        """Give all of it back, and the addresses."""


class DeviceHeap:
    """Pieces of `pages`, each cut from the smallest free one that holds what is asked for.

    The last one, which the heap would grow by, is cut only if no other holds it, as torch has it
    (c10/cuda/CUDACachingAllocator.cpp), with fewer gaps than in other orders.

    Args:
        pages: without memory yet.
        limit_bytes: that may be held; None for as many as the device gives.

    Attributes:
        limit_bytes: as given; it may be set anew.
        held_bytes: that have memory behind them.
        used_bytes: in pieces that are taken now.
    """

    def __init__(self, pages: Pages, *, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = self.used_bytes = 0
        self._pages = pages
        # By how much it grew each time.
        self._grown: list[int] = []
        # (address, bytes) of free pieces, by address, no two of which touch.
        self._free: list[tuple[int, int]] = []
        self._taken: dict[int, int] = {}
        # Values are freed by any thread, and by Python's garbage collector, which may run while the
        # heap is at work, in the very thread: what is given back then waits.
        self._returned: deque[int] = deque()
        self._lock = Lock()
        self._closed = False

    def take(self, size_bytes: int) -> int | None:
        """The address of a piece of at least `size_bytes` >= 0; None where there is no room."""
        size = max(1, -(-size_bytes // ALIGNMENT)) * ALIGNMENT
        with self._lock:
            self._settle()
            piece = self._smallest(size)
            if piece is None and self._grow(size):
                piece = len(self._free) - 1
            address = None if piece is None else self._cut(piece, size)
        self._settle_unless_busy()
        return address

    def give_back(self, address: int) -> None:
        """Free a piece that `take` gave.

        Raises:
            KeyError: it is not taken.
        """
        self._returned.append(address)
        self._settle_unless_busy()

    def hold(self, size_bytes: int) -> bool:
        """Grow by what lets a piece of `size_bytes` be taken; False where there is no room."""
        address = self.take(size_bytes)
        if address is None:
            return False
        self.give_back(address)
        return True

    def trim(self) -> None:
        """Give back what it grew by last, as far as no piece lies there."""
        with self._lock:
            self._settle()
            while self._grown and self._free:
                begin, size = self._free[-1]
                end, last = self._pages.base + self.held_bytes, self._grown[-1]
                if begin + size != end or size < last:
                    break
                self._pages.shrink()
                self._grown.pop()
                self.held_bytes -= last
                self._free[-1:] = [(begin, size - last)] if size > last else []
        self._settle_unless_busy()

    def close(self) -> None:
        """Give the memory back, once the last piece is free."""
        with self._lock:
            self._closed = True
            self._settle()
            self._end()
        self._settle_unless_busy()

    def _settle_unless_busy(self) -> None:
        """Free what was given back; who is busy with the heap does it next."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        while self._returned:
            address = self._returned.popleft()
            size = self._taken.pop(address)
            self.used_bytes -= size
            self._put(address, size)
            self._end()

    def _smallest(self, size: int) -> int | None:
        """Which free piece is to be cut; None if none holds `size`."""
        last = len(self._free) - 1
        fitting = ((i == last, held, i) for i, (_, held) in enumerate(self._free) if held >= size)
        _, _, piece = min(fitting, default=(True, 0, None))
        return piece

    def _cut(self, piece: int, size: int) -> int:
        """Take `size` from the beginning of a free piece."""
        address, held = self._free[piece]
        self._free[piece : piece + 1] = [(address + size, held - size)] if held > size else []
        self._taken[address] = size
        self.used_bytes += size
        return address

    def _grow(self, size: int) -> bool:
        """Let the last free piece, which ends where the memory does, hold `size`."""
        end = self._pages.base + self.held_bytes
        free = self._free[-1] if self._free else (end, 0)
        at_end = free[1] if sum(free) == end else 0
        unit = self._pages.unit
        more = -(-(size - at_end) // unit) * unit
        if self.limit_bytes is not None and self.held_bytes + more > self.limit_bytes:
            return False
        if self._closed or not self._pages.grow(more):
            return False
        self._grown.append(more)
        self.held_bytes += more
        self._put(end, more)
        return True

    def _put(self, address: int, size: int) -> None:
        """Add a free piece, and join it with those that it touches."""
        i = bisect_left(self._free, (address, 0))
        if i < len(self._free) and address + size == self._free[i][0]:
            size += self._free.pop(i)[1]
        if i and sum(self._free[i - 1]) == address:
            address, before = self._free.pop(i - 1)
            size, i = size + before, i - 1
        self._free.insert(i, (address, size))

    def _end(self) -> None:
        if self._closed and not self._taken:
            self._pages.close()
            self.held_bytes = 0
            self._grown.clear()
            self._free.clear()
