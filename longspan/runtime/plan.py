"""The budget divided item by item, before anything is loaded. It loads and measures nothing.

Of a model whose state grows, the plan sets the capacity of the caches, too. Where it is known what
the document takes, the caches hold that and `RESERVE_ENTRIES` for questions and answers, and the
chunk is the largest that fits beside them. Its length tells what it takes, unless ids are anchors:
then the text does. Where it is not known, the chunk comes first, the largest that fits beside
`LEAST_CAPACITY` entries, then the largest capacity that fits beside that chunk, up to
`MOST_CAPACITY`.

plan = make_plan(manifest, engine="onnx-cpu", budget_bytes=2**28, baseline_bytes=66 * 2**20,
                 tokens=None)
require_fit(plan)         # or DoesNotFit, with the arithmetic
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from longspan.bundle import Manifest
from longspan.engines import Engine, device_of
from longspan.errors import BadInput, DoesNotFit
from longspan.models.config import CacheUse
from longspan.runtime.plan_items import (
    MIB,
    PlanItem,
    cache_items,
    chunk_items,
    fixed_items,
    sum_bytes,
)
from longspan.sizes import format_bytes

MIN_CHUNK_TOKENS = 16
# Measured on 2 cores with ONNX Runtime, Samba of 2.8M parameters: 1771 tokens/s with 64 tokens,
# 2180 with 128, 2221 with 256, 2240 with 512. On a GPU the chunk pays for launching the kernels.
MAX_CHUNK_TOKENS: dict[str, int] = {"cpu": 256, "cuda": 8192}
# Entries beyond the document, for a question and its answer.
RESERVE_ENTRIES = 1024
LEAST_CAPACITY = 4 * RESERVE_ENTRIES
# Every call copies the caches: no larger ones than this unless a longer document is announced.
MOST_CAPACITY = 2**17


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where the bytes of a budget go.

    Attributes:
        engine: what computes.
        budget_bytes: what the whole process may hold on the engine's device.
        chunk_tokens: tokens that go through the model together while reading.
        items: what takes memory, in the order in which it comes.
        smallest_budget_bytes: the least budget that would do, with the smallest chunk (or with
            the chunk that was asked for).
        longest_tokens: the longest document that fits, with the smallest chunk; None for any
            length, where every layer has a state of fixed size, and where the text decides how
            much it takes.
        most_entries: the most that a document may take in each cache, with the smallest chunk;
            None where the state does not grow.
        capacity: entries that each cache has room for; 0 where the state does not grow.
        cache_entry_bytes: bytes of one entry of every cache together.
        anchors: whether the caches hold anchors in place of what they close.
        tokens: length of the document that was planned for, if it is known.
    """

    engine: Engine
    budget_bytes: int
    chunk_tokens: int
    items: tuple[PlanItem, ...]
    smallest_budget_bytes: int
    longest_tokens: int | None = None
    most_entries: int | None = None
    capacity: int = 0
    cache_entry_bytes: int = 0
    anchors: bool = False
    tokens: int | None = None

    @property
    def total_bytes(self) -> int:
        """The sum of all items."""
        return sum_bytes(self.items)

    @property
    def fits(self) -> bool:
        """Whether the sum is within the budget."""
        return self.total_bytes <= self.budget_bytes

    def to_json(self, *, fit: bool = False) -> dict[str, Any]:
        """The plan as data; with `fit` also what is the least and what is the most."""
        facts: dict[str, Any] = {
            "fits": self.fits,
            "engine": self.engine,
            "budget_bytes": self.budget_bytes,
            "total_bytes": self.total_bytes,
            "chunk_tokens": self.chunk_tokens,
            "capacity": self.capacity,
            "items": [{"name": item.name, "bytes": item.bytes} for item in self.items],
        }
        if fit:
            facts["smallest_budget_bytes"] = self.smallest_budget_bytes
            facts["longest_tokens"] = self.longest_tokens
            facts["most_entries"] = self.most_entries
        return facts

    def summary(self, *, fit: bool = False) -> str:
        """The plan's verdict in words; with `fit` also what is the least and what is the most."""
        verdict = "fits" if self.fits else "does not fit"
        lines = [
            (
                f"{format_bytes(self.total_bytes)} together: it {verdict} the budget of "
                f"{format_bytes(self.budget_bytes)} ({self.engine}, chunks of "
                f"{self.chunk_tokens:,} tokens)."
            )
        ]
        if fit or not self.fits:
            least = f"The smallest budget that would do is {_mib(self.smallest_budget_bytes)}"
            if self.most_entries is None:
                lines.append(f"{least}; it reads documents of any length.")
            else:
                given = f"the budget of {format_bytes(self.budget_bytes)}"
                lines.append(f"{least}; {given} holds {self.longest}.")
        return "\n".join(lines)

    @property
    def longest(self) -> str:
        """Which documents fit, in words, where the state grows."""
        if self.longest_tokens == 0:
            return "no document"
        if self.longest_tokens is not None:
            return f"documents of up to {self.longest_tokens:,} tokens"
        entries = f"{self.most_entries:,} anchors and tokens of the longest segment together"
        return f"documents of up to {entries}"


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
        chunk_tokens: tokens of a chunk, >= 1; None for the largest power of two that fits.
        tokenizer_file_bytes: size of the bundle's tokenizer file, 0 without one.
        beside: what else the process will hold on the device.

    Returns:
        The plan, which may not fit: then its chunk is the smallest.

    Raises:
        BadInput: the bundle tells nothing about `engine`, or a number is out of its range.
    """
    _check(manifest, engine, tokens, cache_entries, chunk_tokens)
    baseline, *own = fixed_items(manifest, engine, baseline_bytes, tokenizer_file_bytes)
    fixed = (baseline, *beside, *own)

    def items_at(chunk: int, capacity: int) -> tuple[PlanItem, ...]:
        caches = cache_items(manifest, engine, capacity)
        return (*fixed, *caches, *chunk_items(manifest, engine, chunk, capacity))

    def total_at(chunk: int, capacity: int) -> int:
        return sum_bytes(items_at(chunk, capacity))

    def most_entries(chunk: int) -> int:
        most = budget_bytes // manifest.cache_entry_bytes
        return _last(most, lambda capacity: total_at(chunk, capacity) <= budget_bytes)

    grows = manifest.cache_entry_bytes > 0
    use, known = CacheUse.of(manifest.config), cache_entries
    if known is None and tokens is not None:
        known = use.entries_after(tokens)
    capacity = _capacity(known, tokens) if grows else 0
    sizes = [chunk_tokens] if chunk_tokens else _chunk_sizes(engine, tokens)
    fitting = (size for size in sizes if total_at(size, capacity) <= budget_bytes)
    chosen, smallest = next(fitting, sizes[-1]), total_at(sizes[-1], capacity)
    if grows and known is None:
        limit = MOST_CAPACITY if tokens is None else tokens + RESERVE_ENTRIES
        capacity = max(capacity, min(most_entries(chosen), limit, MOST_CAPACITY))
    most = max(0, most_entries(sizes[-1]) - RESERVE_ENTRIES) if grows else None
    return Plan(
        engine=engine,
        budget_bytes=budget_bytes,
        chunk_tokens=chosen,
        items=items_at(chosen, capacity),
        smallest_budget_bytes=smallest,
        longest_tokens=None if most is None else _longest(use, most),
        most_entries=most,
        capacity=capacity,
        cache_entry_bytes=manifest.cache_entry_bytes,
        anchors=bool(manifest.config.anchor_layers),
        tokens=tokens,
    )


def require_fit(plan: Plan) -> None:
    """Refuse a plan that is larger than its budget.

    Raises:
        DoesNotFit: with every item, the least budget that would do, and what to change.
    """
    if plan.fits:
        return
    width = max(len(item.name) for item in (*plan.items, PlanItem(name="together", bytes=0)))
    rows = [f"  {item.name:<{width}}  {format_bytes(item.bytes):>10}" for item in plan.items]
    rows.append(f"  {'together':<{width}}  {format_bytes(plan.total_bytes):>10}")
    if plan.capacity:
        rows.append(_cache_arithmetic(plan))
    raise DoesNotFit(
        f"The budget is {format_bytes(plan.budget_bytes)}, and {plan.engine} with chunks of "
        f"{plan.chunk_tokens:,} tokens needs {format_bytes(plan.total_bytes)}:\n"
        + "\n".join(rows)
        + f"\nThe smallest budget that would do is {_mib(plan.smallest_budget_bytes)}. "
        + _advice(plan)
    )


def _cache_arithmetic(plan: Plan) -> str:
    """Why the caches are so large, and what document would fit."""
    document, each = plan.capacity - RESERVE_ENTRIES, plan.cache_entry_bytes
    return (
        f"A copy of the cache has {document:,} entries for the document and {RESERVE_ENTRIES:,} "
        f"for a question and its answer: {plan.capacity:,} x {each:,} bytes = "
        f"{format_bytes(plan.capacity * each)}. This budget holds {plan.longest}."
        + (_other_anchors(plan) if plan.anchors else "")
    )


def _other_anchors(plan: Plan) -> str:
    """How the same document might fit."""
    return (
        " To have as many anchors as fit, export the checkpoint with --anchors every=auto "
        f"--tokens {plan.tokens or 'N'} --budget {_mib(plan.budget_bytes)}."
    )


def _check(
    manifest: Manifest,
    engine: Engine,
    tokens: int | None,
    cache_entries: int | None,
    chunk_tokens: int | None,
) -> None:
    if engine not in manifest.chunk_bytes:
        known = ", ".join(sorted(manifest.chunk_bytes)) or "none"
        raise BadInput(
            f"The bundle tells how much memory it takes on {known}, and not on {engine}. Choose "
            "another --device or --backend, or export the checkpoint again."
        )
    for name, value, least in (
        ("tokens", tokens, 1),
        ("cache_entries", cache_entries, 0),
        ("chunk_tokens", chunk_tokens, 1),
    ):
        if value is not None and value < least:
            raise BadInput(f"{name} is {value}; it must be {least} or more.")


def _capacity(known: int | None, tokens: int | None) -> int:
    """Entries that the caches must have: for a document that takes `known`, or for any."""
    if known is not None:
        return known + RESERVE_ENTRIES
    return LEAST_CAPACITY if tokens is None else min(LEAST_CAPACITY, tokens + RESERVE_ENTRIES)


def _longest(use: CacheUse, entries: int) -> int | None:
    """Tokens of the longest document that takes `entries`; None where its text decides."""
    if use.entries_after(0) is None:
        return None
    # More tokens than caches of anchors could ever hold.
    return _last(2**62, lambda tokens: (use.entries_after(tokens) or 0) <= entries)


def _last(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number in 0 .. `most` that fits, where all below one that fits do; else 0."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _chunk_sizes(engine: Engine, tokens: int | None) -> list[int]:
    """Powers of two from the largest worth having down to the smallest."""
    size = MAX_CHUNK_TOKENS[device_of(engine)]
    while tokens is not None and size > MIN_CHUNK_TOKENS and size // 2 >= tokens:
        size //= 2
    sizes = [size]
    while sizes[-1] > MIN_CHUNK_TOKENS:
        sizes.append(sizes[-1] // 2)
    return sizes


def _mib(size_bytes: int) -> str:
    """A size that `--budget` takes, rounded up."""
    return f"{-(-size_bytes // MIB)}MiB"


def _advice(plan: Plan) -> str:
    give = f"Give --budget {_mib(plan.smallest_budget_bytes)}"
    if plan.total_bytes > plan.smallest_budget_bytes:
        give += ", smaller chunks"
    if plan.capacity:
        give += ", a shorter document"
    if device_of(plan.engine) == "cuda":
        return f"{give}, or choose --device cpu."
    if plan.engine == "torch-cpu":
        return f"{give}, or choose --backend onnx, which needs no torch."
    return f"{give}, or export a smaller model."
