"""How many bytes of weights lie where: on the device, in slots that they pass through, in the host.

Sizes come from the header of `model.safetensors`, so they hold for any dtype and quantisation. It
loads nothing.

    sizes = weight_sizes(bundle.weights_path)
    placed = place_weights(sizes, sizes.spread(resident=40))
    placed.resident_bytes, placed.slots_bytes, placed.pinned_bytes
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Where tensors begin in a buffer of several: what CUDA's own allocations are aligned to, and more
# than any vectorised load asks for.
ALIGNMENT_BYTES = 256
SLOTS = 2
# Tables of which a chunk reads a few rows; every other name belongs to a layer or a norm.
TABLES = frozenset({"embedding", "head"})
_MIXER = re.compile(r"layers\.(\d+)\.mixer\.")


def aligned(size_bytes: int) -> int:
    """The size rounded up to `ALIGNMENT_BYTES`."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def packed_bytes(sizes: Iterable[int]) -> int:
    """Bytes of one buffer that holds tensors of these sizes."""
    return sum(aligned(size) for size in sizes)


def mixer_layer(name: str) -> int | None:
    """The layer whose mixer has the parameter `name`; None where it is no mixer's."""
    found = _MIXER.match(name)
    return None if found is None else int(found.group(1))


def is_table(name: str) -> bool:
    """Whether the parameter is of the embedding or the head."""
    return name.split(".")[0] in TABLES


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSizes:
    """Bytes of a model's weights, each part packed into one buffer.

    Attributes:
        mixers: of each layer's mixer, in order.
        tables: of the embedding and an untied head.
        rest: of the norms.
    """

    mixers: tuple[int, ...]
    tables: int
    rest: int

    def spread(self, *, resident: int) -> tuple[int, ...]:
        """Which layers stream when `resident` of them stay, evenly between the streamed ones.

        A copy is hidden by what is computed between two streamed layers, so none should wait for
        another while layers that stay are computed elsewhere.
        """
        layers = len(self.mixers)
        streamed = layers - resident
        return tuple(index * layers // streamed for index in range(streamed))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedWeights:
    """Bytes of weights by place.

    Attributes:
        layers: whose mixers stream, in order.
        resident_bytes: on the device.
        slots_bytes: of the slots on the device that streamed layers pass through.
        streamed_bytes: what a pass over the model copies to the device.
        tables_bytes: of the embedding and the head in pinned host memory: a pass reads rows of the
            one, and the other where logits are wanted.
    """

    layers: tuple[int, ...] = ()
    resident_bytes: int
    slots_bytes: int = 0
    streamed_bytes: int = 0
    tables_bytes: int = 0

    @property
    def pinned_bytes(self) -> int:
        """In pinned host memory, all of it; a step takes no more than that over the bus."""
        return self.streamed_bytes + self.tables_bytes

    @property
    def device_bytes(self) -> int:
        """On the device, all of it."""
        return self.resident_bytes + self.slots_bytes


def place_weights(sizes: WeightSizes, streamed_layers: tuple[int, ...]) -> PlacedWeights:
    """Where the weights lie when these layers stream; then the tables lie in the host, too.

    Args:
        sizes: of the model.
        streamed_layers: in order; none for a model that is on the device as a whole.
    """
    everything = sum(sizes.mixers) + sizes.tables + sizes.rest
    if not streamed_layers:
        return PlacedWeights(resident_bytes=everything)
    streamed = [sizes.mixers[index] for index in streamed_layers]
    return PlacedWeights(
        layers=streamed_layers,
        resident_bytes=everything - sum(streamed) - sizes.tables,
        slots_bytes=min(SLOTS, len(streamed)) * max(streamed),
        streamed_bytes=sum(streamed),
        tables_bytes=sizes.tables,
    )


def weight_sizes(path: Path) -> WeightSizes:
    """Sizes of the weights in a safetensors file, from its header alone."""
    mixers: dict[int, int] = {}
    tables = rest = 0
    for name, size in _tensor_bytes(path).items():
        layer = mixer_layer(name)
        if layer is not None:
            mixers[layer] = mixers.get(layer, 0) + aligned(size)
        elif is_table(name):
            tables += aligned(size)
        else:
            rest += aligned(size)
    ordered = tuple(mixers[index] for index in sorted(mixers))
    return WeightSizes(mixers=ordered, tables=tables, rest=rest)


def _tensor_bytes(path: Path) -> Mapping[str, int]:
    """Bytes of each tensor of a safetensors file: 8 bytes of length, then a header in JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }
