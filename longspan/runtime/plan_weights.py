"""How many bytes of weights lie where: on the device, in slots that they pass through, in the host.

Sizes come from the header of `model.safetensors`, so they hold for any dtype and quantisation. It
loads nothing.

    sizes = weight_sizes(bundle.weights_path, bundle.manifest.config)
    placed = place_weights(sizes, sizes.spread(resident=40))
    placed.resident_bytes, placed.slots_bytes, placed.pinned_bytes
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from longspan.bundle import ChunkBytes, Manifest
from longspan.engines import Engine
from longspan.models.config import LayerConfig, ModelConfig, MoeConfig
from longspan.tensors import DTYPE_BYTES
from longspan.weights_file import stored_tensors

# Where tensors begin in a buffer of several: what CUDA's own allocations are aligned to, and more
# than any vectorised load asks for.
ALIGNMENT_BYTES = 256
SLOTS = 2
# Tables of which a chunk reads a few rows, and what belongs to them (``embedding_scales``).
TABLES = ("embedding", "head")
# Parameters of a mixture of experts that hold a matrix for each.
EXPERT_MATRICES = ("gate_up_proj", "down_proj")
# Of a matrix; the last two where it has 8 or 4 bits, zero points not always.
MATRIX_PARTS = ("weight", "scales", "zeros")
# What `longspan.kernels` dequantises at once.
SCRATCH_NUMBERS = 2**25
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
    return name.startswith(TABLES)


def is_expert(name: str, config: ModelConfig) -> bool:
    """Whether the parameter holds the experts of a mixture."""
    layer = mixer_layer(name)
    return (
        layer is not None
        and isinstance(config.layers[layer], MoeConfig)
        and name.split(".")[3] in EXPERT_MATRICES
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSizes:
    """Bytes of one mixture's experts.

    Attributes:
        all: of all of them, packed.
        one: of one, packed.
        top_k: experts that a token goes to.
    """

    all: int
    one: int
    top_k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSizes:
    """Bytes of a model's weights, each part packed into one buffer.

    Attributes:
        mixers: of each layer's mixer, in order; 0 for a mixture of experts.
        tables: of the embedding and an untied head.
        rest: of the norms, and of the routers.
        experts: of each mixture of experts.
    """

    mixers: tuple[int, ...]
    tables: int
    rest: int
    experts: tuple[ExpertSizes, ...] = ()

    @property
    def streamable(self) -> tuple[int, ...]:
        """Layers that can stream: mixtures do not, their experts do."""
        return tuple(index for index, size in enumerate(self.mixers) if size)

    @property
    def all_bytes(self) -> int:
        """Of all weights."""
        experts = sum(each.all for each in self.experts)
        return sum(self.mixers) + self.tables + self.rest + experts

    def spread(self, *, resident: int) -> tuple[int, ...]:
        """Which layers stream when `resident` of the streamable ones stay, evenly between them.

        A copy is hidden by what is computed between two streamed layers, so none should wait for
        another while layers that stay are computed elsewhere.
        """
        layers = self.streamable
        streamed = len(layers) - resident
        return tuple(layers[index * len(layers) // streamed] for index in range(streamed))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedWeights:
    """Bytes of weights by place.

    Attributes:
        layers: whose mixers stream, in order.
        expert_slots: experts that the device holds at once; 0 where it holds them all.
        resident_bytes: on the device.
        slots_bytes: of the slots on the device that streamed layers pass through.
        expert_slots_bytes: of those of the experts.
        pinned_bytes: in pinned host memory: what streams, and the embedding and the head, which
            the device reads there.
        chunk_bytes: what a chunk copies to the device, if its tokens choose every expert.
        step_bytes: what a step takes over the bus.
    """

    layers: tuple[int, ...] = ()
    expert_slots: int = 0
    resident_bytes: int
    slots_bytes: int = 0
    expert_slots_bytes: int = 0
    pinned_bytes: int = 0
    chunk_bytes: int = 0
    step_bytes: int = 0

    @property
    def device_bytes(self) -> int:
        """On the device, all of it."""
        return self.resident_bytes + self.slots_bytes + self.expert_slots_bytes


def place_weights(
    sizes: WeightSizes, streamed_layers: tuple[int, ...] = (), expert_slots: int = 0
) -> PlacedWeights:
    """Where the weights lie when these layers stream, and experts; then the tables, too, wait.

    Args:
        sizes: of the model.
        streamed_layers: in order; none for layers that are all on the device.
        expert_slots: experts that the device holds at once; 0 for all.
    """
    experts = sum(each.all for each in sizes.experts)
    everything = sizes.all_bytes
    if not streamed_layers and not expert_slots:
        return PlacedWeights(resident_bytes=everything)
    streamed = [sizes.mixers[index] for index in streamed_layers]
    moving = experts if expert_slots else 0
    largest = max((each.one for each in sizes.experts), default=0)
    # Two slots are always changing hands, the others keep what they have.
    kept = max(0, expert_slots - SLOTS) * largest
    chosen = sum(each.top_k * each.one for each in sizes.experts) if expert_slots else 0
    return PlacedWeights(
        layers=streamed_layers,
        expert_slots=expert_slots,
        resident_bytes=everything - sum(streamed) - moving - sizes.tables,
        slots_bytes=min(SLOTS, len(streamed)) * max(streamed, default=0),
        expert_slots_bytes=expert_slots * largest,
        pinned_bytes=sum(streamed) + moving + sizes.tables,
        chunk_bytes=sum(streamed) + max(0, moving - kept),
        step_bytes=sum(streamed) + chosen + sizes.tables,
    )


def with_brought_experts(manifest: Manifest, engine: Engine) -> Manifest:
    """The manifest, with the bytes of a chunk on `engine` where experts come one by one."""
    D, b = manifest.config.d_model, DTYPE_BYTES[manifest.dtype]
    stored = manifest.quantization
    packed = stored is not None and stored.experts

    def brought(spent: ChunkBytes, layer: LayerConfig) -> ChunkBytes:
        if not isinstance(layer, MoeConfig):
            return spent
        F = layer.d_ff
        # All tokens may go to the same expert: what it reads and gives, its gate and rows, what
        # SiLU makes of them and their product; in float32 the sum, and twice what is added to it.
        alone = b * (2 * D + 4 * F) + 3 * DTYPE_BYTES["float32"] * D + layer.routing_bytes
        scratch = b * min(2 * F * D, SCRATCH_NUMBERS) if packed else 0
        return replace(spent, fixed=spent.fixed + scratch, per_token=max(spent.per_token, alone))

    *layers, rest = manifest.chunk_bytes[engine]
    more = map(brought, layers, manifest.config.layers)
    return replace(manifest, chunk_bytes={**manifest.chunk_bytes, engine: (*more, rest)})


def weight_sizes(path: Path, config: ModelConfig) -> WeightSizes:
    """Sizes of the weights in a safetensors file, from its header alone.

    Args:
        path: the file.
        config: of its model.
    """
    mixers = [0] * len(config.layers)
    tables = rest = 0
    all_of: dict[int, int] = {}
    one_of: dict[int, int] = {}
    for tensor in stored_tensors(path):
        name, size = tensor.name, tensor.nbytes
        layer = mixer_layer(name)
        mixture = None if layer is None else config.layers[layer]
        if layer is not None and isinstance(mixture, MoeConfig) and is_expert(name, config):
            all_of[layer] = all_of.get(layer, 0) + aligned(size)
            one_of[layer] = one_of.get(layer, 0) + aligned(size // mixture.n_experts)
        elif layer is not None and not isinstance(mixture, MoeConfig):
            mixers[layer] += aligned(size)
        elif is_table(name):
            tables += aligned(size)
        else:
            rest += aligned(size)
    experts = tuple(
        ExpertSizes(all=all_of[index], one=one_of[index], top_k=layer.top_k)
        for index, layer in enumerate(config.layers)
        if isinstance(layer, MoeConfig)
    )
    return WeightSizes(mixers=tuple(mixers), tables=tables, rest=rest, experts=experts)
