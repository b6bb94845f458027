"""A bundle's weights as tensors by name: mapped, on the device, or streaming through slots.

On the CPU they stay mapped from the file. A CUDA device gets one block of memory for all that
stays on it, so that it takes what the plan says to the byte, filled one tensor at a time. Streamed
layers are packed into pinned host memory, one buffer a layer, and so are the embedding and the
head then, which the device reads where they lie: a chunk needs a few rows of the one, and the
other for the last token alone.

    weights = read_weights(path, device, streamed_layers=(0, 2))
    decoder.load_state_dict(weights.tensors, assign=True)
    weights.follow(decoder)
    weights.close()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from longspan.runtime.backends.pinned import HostBuffer
from longspan.runtime.backends.streaming import Copies, CudaCopies, HostCopies, WeightStream
from longspan.runtime.plan_weights import SLOTS, aligned, is_table, mixer_layer, packed_bytes

Tensors = dict[str, torch.Tensor]


class Weights:
    """Tensors by name, and what brings those that stream.

    Attributes:
        tensors: of the model's state dict; a streamed layer's are views into its slot.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def follow(self, model: nn.Module) -> None:
        """Begin to bring weights before their layers are called; `tensors` are the model's now."""
        self.tensors = {}

    def close(self) -> None:
        """Give host memory back; the model must be gone, and the device through with it."""


class StreamedWeights(Weights):
    """Weights of which some layers wait in host memory.

    Args:
        path: a safetensors file.
        device: computes.
        layers: whose mixers stream, in order.
        copies: makes the copies.

    Raises:
        DoesNotFit: the driver cannot lock so much host memory.
    """

    def __init__(
        self, path: Path, device: torch.device, layers: Sequence[int], copies: Copies
    ) -> None:
        names = [name for name in _names(path) if mixer_layer(name) not in layers]
        tables = [name for name in names if is_table(name)]
        tensors = _on_device(path, [name for name in names if not is_table(name)], device)
        self._tables = _packed(path, tables, device)
        where = self._tables.on_device() if device.type == "cuda" else self._tables.host
        tensors |= _views(_described(path, tables), where)
        self._layers = [f"layers.{layer}.mixer" for layer in layers]
        self._buffers = []
        described = []
        for layer in self._layers:
            own = [name for name in _names(path) if name.startswith(f"{layer}.")]
            described.append(_described(path, own))
            self._buffers.append(_packed(path, own, device))
        largest = max(len(buffer.host) for buffer in self._buffers)
        slots = [
            torch.empty(largest, dtype=torch.uint8, device=device)
            for _ in range(min(SLOTS, len(layers)))
        ]
        for index, meta in enumerate(described):
            tensors |= _views(meta, slots[index % len(slots)])
        super().__init__(tensors)
        self._stream = WeightStream([buffer.host for buffer in self._buffers], slots, copies)

    def follow(self, model: nn.Module) -> None:
        """See `Weights.follow`."""
        self._stream.follow([model.get_submodule(layer) for layer in self._layers])
        super().follow(model)

    def close(self) -> None:
        """See `Weights.close`."""
        del self._stream
        for buffer in (self._tables, *self._buffers):
            buffer.close()


def read_weights(
    path: Path,
    device: torch.device,
    *,
    streamed_layers: Sequence[int] = (),
    copies: Copies | None = None,
) -> Weights:
    """Read the weights of a safetensors file to where they are to lie.

    Args:
        path: the file.
        device: computes.
        streamed_layers: layers whose mixers wait in host memory, in order.
        copies: makes the copies; None for the device's own way.

    Raises:
        DoesNotFit: the driver cannot lock so much host memory.
    """
    if streamed_layers:
        if copies is None:
            copies = CudaCopies(device) if device.type == "cuda" else HostCopies()
        return StreamedWeights(path, device, streamed_layers, copies)
    if device.type == "cpu":
        with safe_open(str(path), framework="pt") as file:
            return Weights({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return Weights(_on_device(path, _names(path), device))


def _names(path: Path) -> list[str]:
    with safe_open(str(path), framework="pt") as file:
        return sorted(file.keys())


def _tensors(path: Path, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors mapped from the file, a layer's at a time: what was read before is not held."""
    for _, group in groupby(names, mixer_layer):
        with safe_open(str(path), framework="pt") as file:
            for name in group:
                yield name, file.get_tensor(name)


def _described(path: Path, names: Sequence[str]) -> Tensors:
    """Empty tensors of the shapes and dtypes that the file has."""
    return {name: torch.empty_like(each, device="meta") for name, each in _tensors(path, names)}


def _on_device(path: Path, names: Sequence[str], device: torch.device) -> Tensors:
    """The tensors in one block of the device's memory."""
    described = _described(path, names)
    total = packed_bytes(each.nbytes for each in described.values())
    return _filled(path, described, torch.empty(total, dtype=torch.uint8, device=device))


def _packed(path: Path, names: Sequence[str], device: torch.device) -> HostBuffer:
    """The tensors in one buffer of host memory."""
    described = _described(path, names)
    buffer = HostBuffer(packed_bytes(each.nbytes for each in described.values()), device)
    _filled(path, described, buffer.host)
    return buffer


def _filled(path: Path, described: Mapping[str, torch.Tensor], block: torch.Tensor) -> Tensors:
    """Views into a block, with the file's values."""
    views = _views(described, block)
    for name, tensor in _tensors(path, list(described)):
        views[name].copy_(tensor)
    return views


def _views(described: Mapping[str, torch.Tensor], block: torch.Tensor) -> Tensors:
    """Tensors of these shapes and dtypes, one after the other in uint8 [n] memory."""
    views, start = {}, 0
    for name, each in described.items():
        views[name] = block[start : start + each.nbytes].view(each.dtype).view(each.shape)
        start += aligned(each.nbytes)
    return views
