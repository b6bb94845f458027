"""Weights that pass through two slots on the device, one layer after the other.

The k-th streamed layer's parameters are views into slot k mod 2, forever: nothing is ever pointed
elsewhere. While a layer computes, the next one is copied into the other slot; when it is through,
its slot takes the layer after the next, and after the last one the first again, for the next
chunk. It knows no models: a layer is a module that is called, and bytes in host memory.

    stream = WeightStream(buffers, slots, CudaCopies(device))
    stream.follow(modules)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn


class Copies(Protocol):
    """Copies from the host that run beside what the device computes."""

    def start(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        """Copy once the device is through with all that it was told to compute until now.

        Args:
            target: uint8 [n] on the device.
            source: uint8 [n] on the host.

        Returns:
            What `wait` takes.
        """

    def wait(self, copy: Any) -> None:
        """Let the device compute nothing more before the copy is there."""


class CudaCopies:
    """Copies on a CUDA stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        """See `Copies.start`; the host does not wait."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return self._stream.record_event()

    def wait(self, copy: Any) -> None:
        """See `Copies.wait`; the host does not wait."""
        torch.cuda.current_stream(self._device).wait_event(copy)


class HostCopies:
    """Copies on a device that is the host: done when they are started."""

    def start(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        """See `Copies.start`."""
        target.copy_(source)

    def wait(self, copy: Any) -> None:
        """See `Copies.wait`."""


@dataclass(slots=True)
class _Slot:
    """Bytes on the device, which layer's they are, and the copy that brought them."""

    bytes: torch.Tensor
    layer: int | None = None
    copy: Any = None


class WeightStream:
    """Brings each streamed layer's weights to its slot before the layer computes.

    A layer that is called out of turn, as after a chunk that an error ended, is copied then.

    Args:
        sources: uint8 [n] in host memory for each streamed layer, in the order of their calls.
        slots: uint8 on the device, as long as the longest source; layer k has slot k mod their
            number.
        copies: makes the copies.
    """

    def __init__(
        self, sources: Sequence[torch.Tensor], slots: Sequence[torch.Tensor], copies: Copies
    ) -> None:
        self._sources = list(sources)
        self._slots = [_Slot(slot) for slot in slots]
        self._copies = copies
        for layer in range(len(self._slots)):
            self._bring(layer)

    def follow(self, layers: Sequence[nn.Module]) -> None:
        """Bring the weights of these modules before each of their calls.

        Args:
            layers: one for each source; their parameters are views into their slots.
        """
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._before, index))
            layer.register_forward_hook(partial(self._after, index))

    def _before(self, layer: int, *_: Any) -> None:
        self._bring(layer)
        self._copies.wait(self._slot_of(layer).copy)

    def _after(self, layer: int, *_: Any) -> None:
        step, layers = len(self._slots), len(self._sources)
        following = layer + step
        self._bring(following if following < layers else layer % step)

    def _bring(self, layer: int) -> None:
        """Start to copy a layer into its slot, if it is not there or on its way."""
        slot, source = self._slot_of(layer), self._sources[layer]
        if slot.layer == layer:
            return
        # Whatever interrupts a copy leaves a slot that is nobody's.
        slot.layer = None
        slot.copy = self._copies.start(slot.bytes[: len(source)], source)
        slot.layer = layer

    def _slot_of(self, layer: int) -> _Slot:
        return self._slots[layer % len(self._slots)]
