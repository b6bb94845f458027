"""torch's CUDA allocator with segments that grow in place, played over the tensors of a pass.

Its rules (c10/cuda/CUDACachingAllocator.cpp of torch 2.11): tensors of up to 1 MiB lie in one
segment, others in another. A tensor takes the smallest free piece that holds it, the segment's last
one only if no other does; where none does, the segment grows by whole pages.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from live_bytes import LiveBytes

MIB = 2**20
UNIT = 512
PAGES = 2 * MIB, 20 * MIB


class Segment:
    """One piece of address space, which grows by `page` bytes.

    Attributes:
        pieces: address, bytes, and whether they are in use, in order.
        most_used: bytes that were in use at once.
    """

    def __init__(self, page: int) -> None:
        self._page = page
        self.pieces: list[tuple[int, int, bool]] = []
        self.most_used = 0

    @property
    def bytes(self) -> int:
        """That the device has given."""
        return sum(size for _, size, _ in self.pieces)

    def take(self, size: int) -> int:
        """Address of `size` bytes."""
        free = [at for at, (_, held, used) in enumerate(self.pieces) if not used and held >= size]
        last = len(self.pieces) - 1
        at = min(free, key=lambda at: (at == last, self.pieces[at][1]), default=None)
        if at is None:
            at = self._grow(size)
        address, held, _ = self.pieces[at]
        rest = [(address + size, held - size, False)] if held > size else []
        self.pieces[at : at + 1] = [(address, size, True), *rest]
        self.most_used = max(self.most_used, sum(held for _, held, used in self.pieces if used))
        return address

    def give_back(self, address: int) -> None:
        """Free a piece, and join it with free neighbours."""
        joined: list[tuple[int, int, bool]] = []
        for begin, held, used in self.pieces:
            free = not used or begin == address
            if free and joined and not joined[-1][2]:
                joined[-1] = (joined[-1][0], joined[-1][1] + held, False)
            else:
                joined.append((begin, held, not free))
        self.pieces = joined

    def _grow(self, size: int) -> int:
        """The last piece, free and large enough."""
        if not self.pieces or self.pieces[-1][2]:
            self.pieces.append((self.bytes, 0, False))
        begin, held, _ = self.pieces[-1]
        self.pieces[-1] = (begin, held - (held - size) // self._page * self._page, False)
        return len(self.pieces) - 1


class PlayedAllocator(LiveBytes):
    """Counts what the allocator would hold beside what lives, for tensors that are made inside.

    Args:
        known: as `LiveBytes` has it.
        weights: likewise.
        pages: by how many bytes the segments of small and of large tensors grow.
    """

    def __init__(
        self,
        known: Iterable[torch.Tensor] = (),
        *,
        weights: Iterable[torch.Tensor] = (),
        pages: tuple[int, int] = PAGES,
    ) -> None:
        self.small, self.large = (Segment(page) for page in pages)
        self._places: dict[int, tuple[Segment, int]] = {}
        super().__init__(known, weights=weights)

    @property
    def reserved(self) -> int:
        """Bytes that the device has given."""
        return self.small.bytes + self.large.bytes

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if size and address not in self._tensors and address not in self._weights:
            rounded = -(-size // UNIT) * UNIT
            segment = self.small if rounded <= MIB else self.large
            self._places[address] = segment, segment.take(rounded)
        super()._count(tensor)

    def _forget(self, address: int, size: int) -> None:
        super()._forget(address, size)
        if address not in self._tensors and address in self._places:
            segment, place = self._places.pop(address)
            segment.give_back(place)
