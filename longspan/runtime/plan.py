"""The budget divided item by item, before anything is loaded. It loads and measures nothing.

Of a model whose state grows, the plan sets the capacity of the caches, too. Where it is known what
the document takes, the caches hold that and what a question takes (`plan_entries`), and the chunk
is the largest that fits beside them. The length tells what is taken, unless ids are anchors: then
the text does. Where it is not known, the chunk comes first, the largest that fits beside a least
capacity, then the largest capacity that fits beside that chunk, up to `MOST_CAPACITY`.

Where an engine can record a step and replay it, the plan has room for that if no chunk of
`STEP_CHUNK_TOKENS` or fewer must shrink for it: such chunks cost more than the recording gives.

plan = make_plan(manifest, engine="onnx-cpu", budget_bytes=2**28, baseline_bytes=66 * 2**20,
                 tokens=None)
require_fit(plan)         # or DoesNotFit, with the arithmetic
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from longspan.bundle import Manifest
from longspan.engines import Engine, device_of
from longspan.errors import BadInput
from longspan.runtime.int8_caches import CacheChoice, choose_caches, held_in_int8
from longspan.runtime.plan_choices import Choice, capacity_choice, chunk_choice, step_choice
from longspan.runtime.plan_entries import (
    MOST_CAPACITY,
    entries_of_document,
    last,
    longest_document,
    needed_capacity,
)
from longspan.runtime.plan_items import (
    PlanItem,
    cache_items,
    chunk_items,
    copied_caches,
    fixed_items,
    step_items,
    sum_bytes,
)
from longspan.runtime.plan_result import Plan, require_fit
from longspan.runtime.plan_weights import PlacedWeights, with_brought_experts
from longspan.sizes import format_bytes

__all__ = ["Plan", "make_plan", "replanned", "require_fit"]

MIN_CHUNK_TOKENS = 16
# Measured on 2 cores with ONNX Runtime, Samba of 2.8M parameters: 1771 tokens/s with 64 tokens,
# 2180 with 128, 2221 with 256, 2240 with 512. On a GPU the chunk pays for launching the kernels.
MAX_CHUNK_TOKENS: dict[str, int] = {"cpu": 256, "cuda": 8192}
STEP_CHUNK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What `make_plan` was asked, but for the model and its caches' dtype."""

    engine: Engine
    budget_bytes: int
    baseline_bytes: int
    tokens: int | None
    cache_entries: int | None
    chunk_tokens: int | None
    tokenizer_file_bytes: int
    beside: tuple[PlanItem, ...]
    no_step_graph: str | None
    baseline_source: str
    weights: PlacedWeights | None


def make_plan(
    manifest: Manifest,
    *,
    engine: Engine,
    budget_bytes: int,
    baseline_bytes: int,
    tokens: int | None,
    cache_entries: int | None = None,
    chunk_tokens: int | None = None,
    tokenizer_file_bytes: int = 0,
    beside: tuple[PlanItem, ...] = (),
    no_step_graph: str | None = None,
    baseline_source: str = "measured in this process",
    cache_dtype: CacheChoice | None = None,
    weights: PlacedWeights | None = None,
) -> Plan:
    """Divide a budget.

    Args:
        manifest: of the bundle.
        engine: what computes.
        budget_bytes: what the whole process may hold on the engine's device.
        baseline_bytes: what it holds before any model, as
            `longspan.runtime.baseline.measure_baseline` reads it.
        tokens: length of the document, >= 1; chunks need not be longer. None for any length.
        cache_entries: entries that the document takes in each cache, >= 0, as `CacheUse` counts
            them; None for what any `tokens` take.
        chunk_tokens: tokens of a chunk, >= 1; None for the largest of `_chunk_sizes` that fits.
        tokenizer_file_bytes: size of the bundle's tokenizer file, 0 without one.
        beside: what else the process will hold on the device.
        no_step_graph: why a step cannot be recorded; None where it can.
        baseline_source: where `baseline_bytes` are from, in words.
        cache_dtype: "int8" for keys and values in int8, "auto" for that where nothing fits without
            it; None for the manifest's dtype.
        weights: where they lie, on torch-cuda; None for all of them on the device.

    Returns:
        The plan, which may not fit: then its chunk is the smallest.

    Raises:
        BadInput: the bundle tells nothing about `engine`, a number is out of its range, or the
            engine or the model cannot have caches in int8.
    """
    request = _Request(
        engine=engine,
        budget_bytes=budget_bytes,
        baseline_bytes=baseline_bytes,
        tokens=tokens,
        cache_entries=cache_entries,
        chunk_tokens=chunk_tokens,
        tokenizer_file_bytes=tokenizer_file_bytes,
        beside=beside,
        no_step_graph=no_step_graph,
        baseline_source=baseline_source,
        weights=weights,
    )
    _check(manifest, request)
    return choose_caches(cache_dtype, manifest, engine, lambda held: _planned(held, request))


def _planned(manifest: Manifest, request: _Request) -> Plan:
    """The plan for a state as `manifest` has it."""
    engine, weights = request.engine, request.weights
    if weights is not None and weights.expert_slots:
        manifest = with_brought_experts(manifest, engine)
    baseline, *own = fixed_items(
        manifest,
        engine,
        request.baseline_bytes,
        request.tokenizer_file_bytes,
        request.baseline_source,
        weights,
    )

    def divided(*more: PlanItem) -> Plan:
        fixed = (baseline, *request.beside, *own, *more)
        return _divide(manifest, request, fixed, recorded=bool(more))

    def launched(plan: Plan, reason: str) -> Plan:
        choices = (*plan.choices, step_choice(recorded=False, why=reason))
        return replace(plan, step_reason=reason, choices=choices)

    plain, steps = divided(), step_items(manifest, engine)
    if not steps or (weights is not None and weights.pinned_bytes):
        return plain
    if request.no_step_graph is not None:
        return launched(plain, request.no_step_graph)
    recorded, size = divided(*steps), format_bytes(sum_bytes(steps))
    plain = replace(plain, fastest_budget_bytes=recorded.fastest_budget_bytes)
    least = request.chunk_tokens or min(plain.chunk_tokens, STEP_CHUNK_TOKENS)
    if not recorded.fits or recorded.chunk_tokens < least:
        reason = f"a recorded one takes {size}, which chunks of {least:,} tokens do not leave"
        return launched(plain, reason)
    reason = f"the budget holds its {size}"
    return replace(
        recorded,
        step_graph=True,
        step_reason=reason,
        choices=(*recorded.choices, step_choice(recorded=True, why=reason)),
        smallest_budget_bytes=plain.smallest_budget_bytes,
        longest_tokens=plain.longest_tokens,
        most_entries=plain.most_entries,
    )


def replanned(plan: Plan, manifest: Manifest, budget_bytes: int) -> Plan:
    """The plan of a model that is loaded under `plan`, for another budget: its chunk alone moves.

    Args:
        plan: under which it was loaded.
        manifest: of its bundle.
        budget_bytes: from now on.

    Returns:
        The plan, which may not fit: then its chunk is the smallest.
    """
    engine, capacity = plan.engine, plan.capacity
    if plan.cache_dtype is not None:
        manifest = held_in_int8(manifest, engine)
    if plan.expert_slots:
        manifest = with_brought_experts(manifest, engine)

    def items_at(size: int) -> tuple[PlanItem, ...]:
        return _working_items(manifest, engine, size, capacity, recorded=plan.step_graph)

    moving = items_at(plan.chunk_tokens)
    fixed = tuple(item for item in plan.items if item not in moving)

    def over(size: int) -> int:
        return sum_bytes((*fixed, *items_at(size))) - budget_bytes

    sizes = _chunk_sizes(engine, plan.tokens)
    chosen, choice = _largest_that_fits(sizes, over, plan.tokens, asked=False)
    return replace(
        plan,
        budget_bytes=budget_bytes,
        chunk_tokens=chosen,
        items=(*fixed, *items_at(chosen)),
        smallest_budget_bytes=over(sizes[-1]) + budget_bytes,
        fastest_budget_bytes=over(sizes[0]) + budget_bytes,
        choices=(choice, *plan.choices[1:]),
    )


def _working_items(
    manifest: Manifest, engine: Engine, chunk: int, capacity: int, *, recorded: bool
) -> tuple[PlanItem, ...]:
    """What depends on the chunk; `recorded` says whether a step is."""
    items = chunk_items(manifest, engine, chunk, capacity)
    again = copied_caches(manifest, engine, capacity, items) if recorded else ()
    return (*items, *again)


def _divide(
    manifest: Manifest, request: _Request, fixed: tuple[PlanItem, ...], *, recorded: bool
) -> Plan:
    """The plan beside `fixed`."""
    engine, budget_bytes = request.engine, request.budget_bytes
    tokens, chunk_tokens = request.tokens, request.chunk_tokens

    def items_at(chunk: int, capacity: int) -> tuple[PlanItem, ...]:
        caches = cache_items(manifest, engine, capacity, drafted=bool(request.beside))
        working = _working_items(manifest, engine, chunk, capacity, recorded=recorded)
        return (*fixed, *caches, *working)

    def total_at(chunk: int, capacity: int) -> int:
        return sum_bytes(items_at(chunk, capacity))

    def most_entries(chunk: int) -> int:
        most = budget_bytes // manifest.cache_entry_bytes
        return last(most, lambda capacity: total_at(chunk, capacity) <= budget_bytes)

    grows = manifest.cache_entry_bytes > 0
    known, reserve = entries_of_document(
        manifest.config, tokens=tokens, cache_entries=request.cache_entries
    )
    capacity = needed_capacity(known, reserve, tokens) if grows else 0
    sizes = [chunk_tokens] if chunk_tokens else _chunk_sizes(engine, tokens)
    totals = {size: total_at(size, capacity) for size in sizes}
    chosen, choice = _largest_that_fits(
        sizes, lambda size: totals[size] - budget_bytes, tokens, asked=chunk_tokens is not None
    )
    choices = [choice]
    if grows and known is None:
        limit = MOST_CAPACITY if tokens is None else tokens + reserve
        capacity = max(capacity, min(most_entries(chosen), limit, MOST_CAPACITY))
    if grows:
        at_most = MOST_CAPACITY if capacity == MOST_CAPACITY else None
        choices.append(
            capacity_choice(
                capacity, document=known, reserve=reserve, beside=chosen, at_most=at_most
            )
        )
    most = most_entries(sizes[-1]) if grows else None
    return Plan(
        engine=engine,
        budget_bytes=budget_bytes,
        chunk_tokens=chosen,
        items=items_at(chosen, capacity),
        smallest_budget_bytes=totals[sizes[-1]],
        fastest_budget_bytes=totals[sizes[0]],
        longest_tokens=None if most is None else longest_document(manifest.config, most),
        most_entries=None if most is None else max(0, most - reserve),
        capacity=capacity,
        reserve_entries=reserve if grows else 0,
        cache_entry_bytes=manifest.cache_entry_bytes,
        anchors=bool(manifest.config.anchor_layers),
        tokens=tokens,
        choices=tuple(choices),
    )


def _largest_that_fits(
    sizes: list[int], over: Callable[[int], int], tokens: int | None, *, asked: bool
) -> tuple[int, Choice]:
    """The largest of the chunk `sizes`, which fall, that passes the budget by nothing, and why.

    It is the smallest where none does. `over` tells by how many bytes one passes the budget.
    """
    chosen = next((size for size in sizes if over(size) <= 0), sizes[-1])
    larger = next((size for size in reversed(sizes) if size > chosen), None)
    return chosen, chunk_choice(
        chosen,
        asked=asked,
        larger=None if larger is None else (larger, over(larger)),
        fits=over(chosen) <= 0,
        whole_document=tokens is not None and tokens <= chosen,
    )


def _check(manifest: Manifest, request: _Request) -> None:
    engine = request.engine
    if engine not in manifest.chunk_bytes:
        known = ", ".join(sorted(manifest.chunk_bytes)) or "none"
        raise BadInput(
            f"The bundle tells how much memory it takes on {known}, and not on {engine}. Choose "
            "another --device or --backend, or export the checkpoint again."
        )
    for name, value, least in (
        ("tokens", request.tokens, 1),
        ("cache_entries", request.cache_entries, 0),
        ("chunk_tokens", request.chunk_tokens, 1),
    ):
        if value is not None and value < least:
            raise BadInput(f"{name} is {value}; it must be {least} or more.")


def _chunk_sizes(engine: Engine, tokens: int | None) -> list[int]:
    """Powers of two and the halves between them, downwards; none is longer than the document."""
    size = MAX_CHUNK_TOKENS[device_of(engine)]
    sizes = [size]
    while size > MIN_CHUNK_TOKENS:
        sizes += [size * 3 // 4, size // 2]
        size //= 2
    if tokens is None:
        return sizes
    whole = -(-tokens // MIN_CHUNK_TOKENS) * MIN_CHUNK_TOKENS
    return [min(whole, sizes[0]), *(size for size in sizes[1:] if size < whole)]
