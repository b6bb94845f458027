"""Which layers stream, and with what chunk, where a model does not fit its budget as a whole.

Everything stays on the device while chunks of `USEFUL_CHUNK_TOKENS` fit beside it. Else each chunk
is tried with as many layers on the device as fit, and the one that reads fastest is taken; of
those within `SAME_SPEED` of it the one with most layers on the device, whose steps cost least
(`longspan.runtime.plan_speed`). Where the document's length is known, its chunks are equally long:
a short one takes all copies, too. It loads and measures nothing.

plan = choose_placement(remake, sizes, measure_rates, parameters=10**9, chunk_tokens=None,
                        tokens=None)
require_host_memory(plan, free_bytes("cpu"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from longspan.errors import DoesNotFit
from longspan.runtime.plan_choices import Choice, step_choice
from longspan.runtime.plan_result import Plan
from longspan.runtime.plan_speed import Rates, ReadingSpeed
from longspan.runtime.plan_weights import SLOTS, PlacedWeights, WeightSizes, place_weights
from longspan.sizes import format_bytes

# Shorter ones leave a GPU idle while their kernels are launched: an H100 reads 1,024 tokens in the
# time of 4,096.
USEFUL_CHUNK_TOKENS = 1024
# Longer ones hide no more: an H100 computes 16,384 tokens in twice the time of the copy.
MOST_CHUNK_TOKENS = 16384
SAME_SPEED = 0.98
# Tokens of a chunk are a multiple of this, which is a multiple of what kernels cut them into.
CHUNK_STEP = 64


def choose_placement(
    remake: Callable[[PlacedWeights, int | None], Plan],
    sizes: WeightSizes,
    measure: Callable[[], Rates],
    *,
    parameters: int,
    chunk_tokens: int | None,
    tokens: int | None,
) -> Plan:
    """The plan with all weights on the device, or with some that stream.

    Args:
        remake: makes the plan with weights that lie so, and chunks of so many tokens; None for the
            largest that fits.
        sizes: of the weights.
        measure: tells the machine's rates, where they are needed.
        parameters: of the model.
        chunk_tokens: of a chunk, where it was asked for.
        tokens: of the document, if that is known.

    Returns:
        A plan, which may not fit; its smallest budget is the least of any placement, its fastest
        that with all weights on the device.
    """
    resident = remake(place_weights(sizes), chunk_tokens)
    if not can_stream(sizes):
        return resident
    barest = barest_placement(sizes)
    least = remake(barest, chunk_tokens)
    smallest = min(resident.smallest_budget_bytes, least.smallest_budget_bytes)
    useful = chunk_tokens or min(USEFUL_CHUNK_TOKENS, tokens or USEFUL_CHUNK_TOKENS)
    if resident.fits and resident.chunk_tokens >= useful:
        return replace(resident, smallest_budget_bytes=smallest)
    speed = ReadingSpeed(sizes=sizes, rates=measure(), parameters=parameters)
    speeds = _Speeds(speed=speed, tokens=tokens)
    found = [speeds.told(least, barest)]
    for chunk in [chunk_tokens] if chunk_tokens else chunk_sizes(tokens):
        streamed = remake(barest, chunk)
        if streamed.fits:
            spare = streamed.budget_bytes - streamed.total_bytes
            weights = most_resident(sizes, barest.device_bytes + spare)
            found.append(speeds.told(remake(weights, chunk), weights))
    fitting = [each for each in (resident, *found) if each.fits]
    # What is refused is refused with the arithmetic of the placement that takes least.
    chosen = speeds.best(fitting) if fitting else min(resident, found[0], key=_total)
    fastest = resident.fastest_budget_bytes
    return replace(chosen, smallest_budget_bytes=smallest, fastest_budget_bytes=fastest)


def require_host_memory(plan: Plan, free_bytes: int) -> None:
    """Refuse a plan whose streamed weights the host has no room for.

    Args:
        plan: fits the device.
        free_bytes: of host memory.

    Raises:
        DoesNotFit: with both numbers, and the budget that needs no host memory.
    """
    if plan.pinned_host_bytes <= free_bytes:
        return
    raise DoesNotFit(
        f"The budget of {format_bytes(plan.budget_bytes)} does not hold the weights, and those "
        f"that stream would wait in {format_bytes(plan.pinned_host_bytes)} of pinned host memory, "
        f"of which {format_bytes(free_bytes)} are free. Free host memory, "
        "give a larger --budget, or export the checkpoint with --weights int8 or int4."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Speeds:
    """How fast plans read a document of `tokens`, or of any length."""

    speed: ReadingSpeed
    tokens: int | None

    def seconds_a_token(self, plan: Plan) -> float:
        """Of reading."""
        chunk = plan.chunk_tokens
        return self.speed.seconds(self._placed(plan), chunk_tokens=chunk, tokens=self.tokens)

    def best(self, plans: Sequence[Plan]) -> Plan:
        """The one with least weights to copy among the fastest."""
        fastest = min(self.seconds_a_token(plan) for plan in plans)
        near = [plan for plan in plans if self.seconds_a_token(plan) * SAME_SPEED <= fastest]
        return min(near, key=self._costs)

    def _costs(self, plan: Plan) -> tuple[int, int]:
        return self._placed(plan).step_bytes, -plan.chunk_tokens

    def _placed(self, plan: Plan) -> PlacedWeights:
        return place_weights(self.speed.sizes, plan.streamed_layers, plan.expert_slots)

    def told(self, plan: Plan, weights: PlacedWeights) -> Plan:
        """The plan, with where its weights wait and what a step costs."""
        taken, rate = weights.step_bytes, self.speed.rates.copied_bytes
        moving = []
        if weights.layers:
            moving.append(f"{len(weights.layers)} of {len(self.speed.sizes.mixers)} layers stream")
        if weights.expert_slots:
            moving.append(f"experts stream through {weights.expert_slots:,} slots")
        step_reason = (
            f"{', '.join(moving)}, and a step takes {format_bytes(taken)} over the bus, "
            f"{1e3 * taken / rate:,.1f} ms at the measured {rate / 1e9:,.1f} GB/s"
        )
        why = "no useful chunk fits beside all weights; with this chunk it reads fastest"
        choices = (
            *plan.choices,
            Choice(what="weights", chosen=", ".join(moving), why=why),
            step_choice(recorded=False, why=step_reason),
        )
        return replace(
            plan,
            streamed_layers=weights.layers,
            expert_slots=weights.expert_slots,
            pinned_host_bytes=weights.pinned_bytes,
            step_reason=step_reason,
            choices=choices,
        )


def can_stream(sizes: WeightSizes) -> bool:
    """Whether streaming frees anything: whether there is more than the slots hold."""
    return len(sizes.streamable) > SLOTS or bool(sizes.experts)


def barest_placement(sizes: WeightSizes) -> PlacedWeights:
    """All that can stream streams, through as few slots as there can be."""
    slots = SLOTS if sizes.experts else 0
    layers = sizes.spread(resident=0) if len(sizes.streamable) > SLOTS else ()
    return place_weights(sizes, layers, slots)


def most_resident(sizes: WeightSizes, device_bytes: int) -> PlacedWeights:
    """Weights with as much on the device as it has bytes for; the barest where it has few.

    Layers come first: each chunk needs all of a layer, and not all experts. Where layers stream,
    more do than there are slots: fewer would be on the device in all but name.
    """
    barest = barest_placement(sizes)
    layers, slots = len(barest.layers), barest.expert_slots
    counts = range(layers if slots else layers - SLOTS - 1, 0, -1)
    spread = (sizes.spread(resident=count) for count in counts if layers - count not in (1, SLOTS))
    placed = (place_weights(sizes, streamed, slots) for streamed in spread)
    found = next((each for each in placed if each.device_bytes <= device_bytes), barest)
    if not slots:
        return found
    each_bytes = found.expert_slots_bytes // slots
    more = max(0, device_bytes - found.device_bytes) // each_bytes
    most = sum(mixture.all // mixture.one for mixture in sizes.experts)
    return place_weights(sizes, found.layers, min(slots + more, most))


def chunk_sizes(tokens: int | None) -> list[int]:
    """Chunks that are tried, the shortest first; of a document, those that cut it evenly."""
    sizes = [*(2**power for power in range(4, 9)), *range(512, 4096, 512)]
    sizes += range(4096, MOST_CHUNK_TOKENS + 1, 1024)
    if tokens is None:
        return sizes
    by_count = {-(-tokens // size): size for size in reversed(sizes)}
    return sorted(min(size, _even(tokens, count)) for count, size in by_count.items())


def _even(tokens: int, count: int) -> int:
    """The shortest chunk that cuts a document into `count`."""
    return -(-tokens // (count * CHUNK_STEP)) * CHUNK_STEP


def _total(plan: Plan) -> int:
    return plan.total_bytes
