"""A bundle's weights as tensors by name: mapped, on the device, or streaming through slots.

On the CPU they stay mapped from the file. A CUDA device gets one block of memory for all that
stays on it, so that it takes what the plan says to the byte, filled one tensor at a time. Where
some stream, they are packed into pinned host memory, one buffer a layer, and so are the embedding
and the head, which the device reads where they lie: a chunk needs a few rows of the one, and the
other for the last token alone.

    weights = read_weights(path, config, device, Streamed(layers=(0, 2, 4)))
    decoder.load_state_dict(weights.tensors, assign=True)
    weights.follow(decoder)
    weights.close()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from longspan.models.config import ModelConfig
from longspan.runtime.backends.expert_stream import ExpertStream
from longspan.runtime.backends.pinned import HostBuffer
from longspan.runtime.backends.streaming import Copies, CudaCopies, HostCopies, WeightStream
from longspan.runtime.plan_weights import (
    EXPERT_MATRICES,
    MATRIX_PARTS,
    SLOTS,
    aligned,
    is_expert,
    is_table,
    mixer_layer,
    packed_bytes,
)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """What streams: mixers of layers, in order, and experts through so many slots, 0 for none."""

    layers: tuple[int, ...] = ()
    expert_slots: int = 0

    def __bool__(self) -> bool:
        """Whether anything does."""
        return bool(self.layers or self.expert_slots)


class Weights:
    """Tensors by name, and what brings those that stream.

    Attributes:
        tensors: of the model's state dict, until it has them. A streamed layer's are views into
            its slot, experts that stream lie in host memory.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def follow(self, model: nn.Module) -> None:
        """Begin to bring weights before their layers are called; the model has `tensors` now."""
        del model
        self.tensors = {}

    def close(self) -> None:
        """Give host memory back; the model must be gone, and the device through with it."""


class StreamedWeights(Weights):
    """Weights of which some wait in host memory.

    Args:
        path: a safetensors file.
        config: of its model.
        device: computes.
        streamed: what waits.
        copies: makes the copies.

    Raises:
        DoesNotFit: the driver cannot lock so much host memory.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        device: torch.device,
        streamed: Streamed,
        copies: Copies,
    ) -> None:
        self._path, self._device, self._copies = path, device, copies
        self._buffers: list[HostBuffer] = []
        self._streams: list[tuple[WeightStream, list[str]]] = []
        self._experts: tuple[ExpertStream, list[int]] | None = None
        names = set(_names(path))
        mixers = [_of_layer(names, layer) for layer in streamed.layers]
        tables = {name for name in names if is_table(name)}
        experts = {name for name in names if streamed.expert_slots and is_expert(name, config)}
        waiting = tables.union(experts, *mixers)
        tensors = _on_device(path, sorted(names - waiting), device)
        tensors |= self._where_they_lie(sorted(tables))
        if mixers:
            tensors |= self._through_slots(mixers, streamed.layers)
        if experts:
            tensors |= self._as_chosen(experts, streamed.expert_slots)
        super().__init__(tensors)

    def follow(self, model: nn.Module) -> None:
        """See `Weights.follow`."""
        for stream, layers in self._streams:
            stream.follow([model.get_submodule(layer) for layer in layers])
        if self._experts is not None:
            experts, mixtures = self._experts
            for number, layer in enumerate(mixtures):
                mixer: Any = model.get_submodule(_mixer(layer))
                mixer.bring = partial(experts.bring, number)
        super().follow(model)

    def close(self) -> None:
        """See `Weights.close`."""
        self._streams, self._experts = [], None
        for buffer in self._buffers:
            buffer.close()

    def _where_they_lie(self, names: Sequence[str]) -> Tensors:
        """Tensors in host memory, which the device reads by itself."""
        described, buffer = self._packed(names)
        block = buffer.on_device() if self._device.type == "cuda" else buffer.host
        return _views(described, block)

    def _through_slots(self, mixers: Sequence[set[str]], layers: Sequence[int]) -> Tensors:
        """Views into slots that these layers pass through."""
        packed = [self._packed(sorted(names)) for names in mixers]
        sources = [buffer.host for _, buffer in packed]
        largest = max(len(source) for source in sources)
        slots = [
            torch.empty(largest, dtype=torch.uint8, device=self._device)
            for _ in range(min(SLOTS, len(layers)))
        ]
        stream = WeightStream(sources, slots, self._copies)
        self._streams.append((stream, [_mixer(layer) for layer in layers]))
        tensors: Tensors = {}
        for index, (described, _) in enumerate(packed):
            tensors |= _views(described, slots[index % len(slots)])
        return tensors

    def _as_chosen(self, names: set[str], slots: int) -> Tensors:
        """Experts in host memory, which come to the device one by one."""
        layers = sorted({layer for name in names if (layer := mixer_layer(name)) is not None})
        tensors, mixtures = Tensors(), []
        for layer in layers:
            described, buffer = self._packed(sorted(_of_layer(names, layer)))
            own = _views(described, buffer.host)
            wanted = (
                f"{_mixer(layer)}.{each}.{part}"
                for each in EXPERT_MATRICES
                for part in MATRIX_PARTS
            )
            mixtures.append([own[name] for name in wanted if name in own])
            tensors |= own
        stream = ExpertStream(mixtures, slots=slots, device=self._device, copies=self._copies)
        self._experts = stream, layers
        return tensors

    def _packed(self, names: Sequence[str]) -> tuple[Tensors, HostBuffer]:
        """What the tensors are like, and a buffer of host memory with one after the other."""
        described = _described(self._path, names)
        nbytes = packed_bytes(each.nbytes for each in described.values())
        buffer = HostBuffer(nbytes, self._device)
        _fill_(_views(described, buffer.host), self._path)
        self._buffers.append(buffer)
        return described, buffer


def read_weights(
    path: Path,
    config: ModelConfig,
    device: torch.device,
    streamed: Streamed | None = None,
    *,
    copies: Copies | None = None,
) -> Weights:
    """Read the weights of a safetensors file to where they are to lie.

    Args:
        path: the file.
        config: of its model.
        device: computes.
        streamed: what waits in host memory; None for nothing.
        copies: makes the copies; None for the device's own way.

    Raises:
        DoesNotFit: the driver cannot lock so much host memory.
    """
    if streamed:
        if copies is None:
            copies = CudaCopies(device) if device.type == "cuda" else HostCopies()
        return StreamedWeights(path, config, device, streamed, copies)
    if device.type == "cpu":
        with safe_open(str(path), framework="pt") as file:
            return Weights({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return Weights(_on_device(path, _names(path), device))


def _mixer(layer: int) -> str:
    return f"layers.{layer}.mixer"


def _of_layer(names: set[str], layer: int) -> set[str]:
    """Those of a layer's mixer."""
    return {name for name in names if mixer_layer(name) == layer}


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
    """Tensors without data, of the shapes and dtypes that the file has."""
    return {name: torch.empty_like(each, device="meta") for name, each in _tensors(path, names)}


def _on_device(path: Path, names: Sequence[str], device: torch.device) -> Tensors:
    """The tensors in one block of the device's memory."""
    described = _described(path, names)
    total = packed_bytes(each.nbytes for each in described.values())
    views = _views(described, torch.empty(total, dtype=torch.uint8, device=device))
    _fill_(views, path)
    return views


def _fill_(views: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy the file's values to tensors of its names."""
    for name, tensor in _tensors(path, list(views)):
        views[name].copy_(tensor)


def _views(described: Mapping[str, torch.Tensor], block: torch.Tensor) -> Tensors:
    """Tensors of these shapes and dtypes, one after the other in uint8 [n] memory."""
    views, start = {}, 0
    for name, each in described.items():
        views[name] = block[start : start + each.nbytes].view(each.dtype).view(each.shape)
        start += aligned(each.nbytes)
    return views
