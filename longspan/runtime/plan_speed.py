"""How long a document takes to read while weights stream: the copies are played, layer by layer.

A streamed layer waits for its copy, and its slot takes the next layer's copy only when it is
through. While layers compute that stay on the device, the bus has nothing to do once all slots are
full. So a chunk can take longer than what is computed and than what is copied. It loads and
measures nothing.

    speed = ReadingSpeed(sizes=sizes, rates=rates, parameters=10**9)
    speed.seconds(placed, chunk_tokens=8192, tokens=65_536)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longspan.runtime.plan_weights import SLOTS, PlacedWeights, WeightSizes

# Measured on an H100, Mamba-2 2.7B: 87 ms for 8,192 tokens, of which products alone take 68; and
# the host takes 0.66 ms to launch a layer's kernels, however few tokens there are.
BESIDE_PRODUCTS = 1.3
LAUNCH_SECONDS = 0.66e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a machine does in a second.

    Attributes:
        copied_bytes: from pinned host memory to the device.
        operations: additions and multiplications of matrix products in the weights' dtype.
    """

    copied_bytes: float
    operations: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeconds:
    """What a layer takes of a chunk.

    Attributes:
        computed: by the device.
        copied: for its weights, before it can begin; None where they stay on the device.
        experts: for those that come as they are chosen, while it computes.
    """

    computed: float
    copied: float | None = None
    experts: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingSpeed:
    """How fast a model reads, by what was measured of the machine.

    Attributes:
        sizes: of its weights.
        rates: of the machine.
        parameters: of the model.
    """

    sizes: WeightSizes
    rates: Rates
    parameters: int

    def seconds(self, weights: PlacedWeights, *, chunk_tokens: int, tokens: int | None) -> float:
        """Of reading `tokens`, or of one chunk where they are not known, for each token.

        Every chunk takes all copies, also a last one of few tokens.
        """
        if tokens is None:
            return self._chunk(weights, chunk_tokens) / chunk_tokens
        whole, rest = divmod(tokens, chunk_tokens)
        total = whole * self._chunk(weights, chunk_tokens) if whole else 0.0
        return (total + (self._chunk(weights, rest) if rest else 0.0)) / tokens

    def _chunk(self, weights: PlacedWeights, tokens: int) -> float:
        """Of one chunk among others."""
        sizes, rate = self.sizes, self.rates.copied_bytes
        streamed = set(weights.layers)
        moving = weights.chunk_bytes - sum(sizes.mixers[index] for index in streamed)
        experts = moving / rate / max(1, len(sizes.experts))
        each = 2.0 * self.parameters / sizes.all_bytes * tokens / self.rates.operations
        active = iter(sizes.experts)
        layers = []
        for index, size in enumerate(sizes.mixers):
            mixture = None if size else next(active, None)
            multiplied = size if mixture is None else mixture.top_k * mixture.one
            layers.append(
                LayerSeconds(
                    computed=max(BESIDE_PRODUCTS * each * multiplied, LAUNCH_SECONDS),
                    copied=size / rate if index in streamed else None,
                    experts=0.0 if mixture is None else experts,
                )
            )
        return chunk_seconds(layers)


def chunk_seconds(layers: Sequence[LayerSeconds], slots: int = SLOTS) -> float:
    """Seconds of a chunk among others, of layers that stream as `WeightStream` brings them."""
    copies = [layer.copied for layer in layers if layer.copied is not None]
    device = bus = begin = 0.0
    there = []
    for copy in copies[:slots]:
        bus += copy
        there.append(bus)
    there += [0.0] * (len(copies) - slots)
    # The first begins with an idle bus; the second one is like all after it.
    for _ in range(2):
        begin, turn = device, 0
        for layer in layers:
            if layer.copied is not None:
                device = max(device, there[turn])
            if layer.experts:
                bus = max(bus, device) + layer.experts
            device += layer.computed
            if layer.experts:
                device = max(device, bus)
            if layer.copied is None:
                continue
            following = turn + slots
            if following >= len(copies):
                following = turn % slots
            if following != turn:
                bus = max(bus, device) + copies[following]
                there[following] = bus
            turn += 1
    return device - begin
