"""Experts that come one at a time: only those that tokens go to, and the busiest stay.

All mixtures of a model share some slots on the device. An expert that a chunk chose is copied into
the slot of the one with fewest tokens so far, while the one before it computes; so the busiest are
seldom replaced, and as few as two slots do. It knows no models: a mixture is a number, an expert
the bytes of its matrices in host memory.

    stream = ExpertStream(mixtures, slots=4, device=device, copies=CudaCopies(device))
    for expert, tensors in stream.bring(0, {3: 17, 5: 1}): ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from longspan.runtime.backends.streaming import Copies
from longspan.runtime.plan_weights import packed_bytes

# A mixture's number, and an expert's among its own.
Key = tuple[int, int]


@dataclass(slots=True)
class _Slot:
    """Bytes on the device, whose they are, and the copies that brought them."""

    bytes: torch.Tensor
    key: Key | None = None
    copies: list[Any] = field(default_factory=list)


class ExpertStream:
    """Brings experts to the device.

    Args:
        mixtures: tensors [E, ...] of each mixture, in host memory.
        slots: experts that the device holds at once, at least 2.
        device: computes.
        copies: makes the copies.
    """

    def __init__(
        self,
        mixtures: Sequence[Sequence[torch.Tensor]],
        *,
        slots: int,
        device: torch.device,
        copies: Copies,
    ) -> None:
        self._mixtures = mixtures
        largest = max(packed_bytes(each[0].nbytes for each in mixture) for mixture in mixtures)
        self._slots = [
            _Slot(torch.empty(largest, dtype=torch.uint8, device=device)) for _ in range(slots)
        ]
        self._copies = copies
        self._tokens: Counter[Key] = Counter()

    def bring(
        self, mixture: int, tokens: Mapping[int, int]
    ) -> Iterator[tuple[int, Sequence[torch.Tensor]]]:
        """Give experts of a mixture in turn.

        Args:
            mixture: its number.
            tokens: how many go to each expert that is wanted, by its number.

        Yields:
            Its number and its tensors, in their order, which are valid until the next one.
        """
        wanted = [(mixture, expert) for expert in tokens]
        self._tokens.update({(mixture, expert): count for expert, count in tokens.items()})
        for index, key in enumerate(wanted):
            slot = self._found(key) or self._fetch(key, ())
            assert slot is not None, "some slot is free where none must be kept"
            self._look_ahead(wanted[index:])
            for copy in slot.copies:
                self._copies.wait(copy)
            yield key[1], self._views(key, slot)

    def _look_ahead(self, wanted: Sequence[Key]) -> None:
        """Begin to copy the first that is missing, if a slot is free that is not wanted before."""
        for index, key in enumerate(wanted):
            if self._found(key) is None:
                self._fetch(key, wanted[:index])
                return

    def _found(self, key: Key) -> _Slot | None:
        return next((slot for slot in self._slots if slot.key == key), None)

    def _fetch(self, key: Key, kept: Collection[Key]) -> _Slot | None:
        """Begin to copy an expert in place of the one with fewest tokens; None if all are kept."""
        free = [slot for slot in self._slots if slot.key not in kept]
        if not free:
            return None
        slot = min(free, key=lambda each: -1 if each.key is None else self._tokens[each.key])
        # Whatever interrupts a copy leaves a slot that is nobody's.
        slot.key = None
        targets = self._views(key, slot)
        sources = [tensor[key[1]] for tensor in self._mixtures[key[0]]]
        slot.copies = [
            self._copies.start(target.view(-1).view(torch.uint8), source.view(-1).view(torch.uint8))
            for target, source in zip(targets, sources, strict=True)
        ]
        slot.key = key
        return slot

    def _views(self, key: Key, slot: _Slot) -> list[torch.Tensor]:
        """The expert's tensors in the slot."""
        views, start = [], 0
        for tensor in self._mixtures[key[0]]:
            one = tensor[key[1]]
            views.append(slot.bytes[start : start + one.nbytes].view(one.dtype).view(one.shape))
            start += packed_bytes([one.nbytes])
        return views
