"""From a bundle and a budget to a plan: what the machine is asked before `make_plan` divides.

plan_bundle("bundle/", budget="2GiB").fits
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longspan.builtin import named_bundle
from longspan.bundle import Bundle, open_bundle
from longspan.engines import BackendName, Device, check_names
from longspan.errors import DoesNotFit
from longspan.runtime.backends.choice import EngineChoice, choose_engine
from longspan.runtime.baseline import known_baseline
from longspan.runtime.budget import Budget
from longspan.runtime.device_memory import free_bytes, memory_now
from longspan.runtime.drafting import CHUNK_TOKENS as DRAFT_CHUNK_TOKENS
from longspan.runtime.drafting import draft_items, require_fixed_state
from longspan.runtime.int8_caches import CacheChoice
from longspan.runtime.plan import Plan, make_plan
from longspan.runtime.plan_items import PlanItem
from longspan.runtime.plan_streaming import choose_placement
from longspan.runtime.plan_weights import PlacedWeights, place_weights, weight_sizes
from longspan.runtime.rates import PROBE_BYTES, known_rates, shares_host_memory
from longspan.runtime.recording import why_not_recorded
from longspan.sizes import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be planned for.

    Attributes:
        budget: bytes of the whole process; None for nine tenths of what is free.
        tokens: length of the document; None for any.
        cache_entries: entries that it takes in each cache; None for what any `tokens` take.
        chunk_tokens: of a chunk; None for the most that fits.
        cache_dtype: what keys and values are kept in, as `make_plan` takes it.
    """

    budget: str | int | Budget | None = None
    tokens: int | None = None
    cache_entries: int | None = None
    chunk_tokens: int | None = None
    cache_dtype: CacheChoice | None = None


def plan_bundle(
    bundle: str | Path | Bundle,
    *,
    budget: str | int | Budget | None = None,
    tokens: int | None = None,
    cache_entries: int | None = None,
    device: Literal["auto"] | Device = "auto",
    backend: Literal["auto"] | BackendName = "auto",
    chunk_tokens: int | None = None,
    draft: str | Path | Bundle | None = None,
    cache_dtype: CacheChoice | None = None,
) -> Plan:
    """Divide the budget, loading nothing.

    Args:
        bundle: its folder.
        budget: bytes that the whole process may hold; None for nine tenths of what is free.
        tokens: length of the document; None for any.
        cache_entries: entries that it takes in each cache; None for what any `tokens` take.
        device: where to run.
        backend: what runs it.
        chunk_tokens: tokens of a chunk; None for the most that fits.
        draft: the folder of a bundle that is to be loaded beside it.
        cache_dtype: as for `load`.

    Raises:
        BadBundle: there is no bundle.
        BadInput: a value is out of its range, or the device is not there, or the engine or the
            model cannot have caches in int8.
    """
    check_names(device=device, backend=backend, cache_dtype=cache_dtype)
    choice = choose_engine(device=device, backend=backend)
    wanted = Wanted(
        budget=budget,
        tokens=tokens,
        cache_entries=cache_entries,
        chunk_tokens=chunk_tokens,
        cache_dtype=cache_dtype,
    )
    small = None if draft is None else as_bundle(draft)
    plan, _ = make_plans(as_bundle(bundle), small, choice, wanted, known_baseline(choice.engine))
    return plan


def as_bundle(bundle: str | Path | Bundle) -> Bundle:
    """The bundle, opened if it is not yet; ``"builtin"`` is the one that ships.

    Raises:
        BadBundle: there is none.
    """
    return bundle if isinstance(bundle, Bundle) else open_bundle(named_bundle(Path(bundle)))


def make_plans(
    bundle: Bundle,
    draft: Bundle | None,
    choice: EngineChoice,
    wanted: Wanted,
    baseline: tuple[int, str],
) -> tuple[Plan, Plan | None]:
    """The plan with all that will be loaded, and the draft model's own.

    Args:
        bundle: the model.
        draft: one that drafts its answers, or None.
        choice: where they run.
        wanted: of the model.
        baseline: bytes that the process holds before any model, and where they are from.

    Raises:
        BadInput: a value is out of its range.
        DoesNotFit: the budget is smaller than what the device needs before any model.
    """
    planner = _Planner(choice, _budget(wanted.budget, choice), baseline)
    if draft is None:
        return planner.plan(bundle, wanted), None
    require_fixed_state(draft)

    def beside(no_step_graph: str | None) -> tuple[Plan, Plan]:
        drafted = Wanted(chunk_tokens=DRAFT_CHUNK_TOKENS)
        small = planner.plan(draft, drafted, no_step_graph=no_step_graph, streams=False)
        items = draft_items(bundle.manifest, draft, small)
        return planner.plan(bundle, wanted, beside=items), small

    found = beside(None)
    if found[0].fits:
        return found
    return beside("the larger model would not fit beside a recorded one")


@dataclass(frozen=True, slots=True)
class _Planner:
    """Plans on one machine under one budget."""

    choice: EngineChoice
    budget: Budget
    baseline: tuple[int, str]

    def plan(
        self,
        bundle: Bundle,
        wanted: Wanted,
        *,
        beside: tuple[PlanItem, ...] = (),
        no_step_graph: str | None = None,
        streams: bool = True,
    ) -> Plan:
        """The plan of one model; its weights may stream if `streams`."""
        tokenizer, manifest, engine = bundle.tokenizer_path, bundle.manifest, self.choice.engine
        baseline_bytes, baseline_source = self.baseline

        def remake(weights: PlacedWeights | None, chunk_tokens: int | None) -> Plan:
            return make_plan(
                manifest,
                engine=engine,
                budget_bytes=self.budget.bytes,
                baseline_bytes=baseline_bytes,
                baseline_source=baseline_source,
                tokens=wanted.tokens,
                cache_entries=wanted.cache_entries,
                chunk_tokens=chunk_tokens,
                tokenizer_file_bytes=0 if tokenizer is None else tokenizer.stat().st_size,
                beside=beside,
                no_step_graph=no_step_graph or why_not_recorded(manifest, engine),
                cache_dtype=wanted.cache_dtype,
                weights=weights,
            )

        if engine != "torch-cuda":
            return remake(None, wanted.chunk_tokens)
        sizes = weight_sizes(bundle.weights_path, manifest.config)
        # A smaller model than the probe of the machine's rates is not worth the probe.
        if not streams or manifest.weight_bytes < PROBE_BYTES or shares_host_memory():
            return remake(place_weights(sizes), wanted.chunk_tokens)
        return choose_placement(
            remake,
            sizes,
            lambda: known_rates(manifest.dtype),
            parameters=manifest.parameters,
            chunk_tokens=wanted.chunk_tokens,
            tokens=wanted.tokens,
        )


def _budget(budget: str | int | Budget | None, choice: EngineChoice) -> Budget:
    if budget is None:
        return Budget.default(choice.device)
    return budget if isinstance(budget, Budget) else Budget(budget)


def require_room(plan: Plan, device: Device) -> None:
    """Refuse a plan for which other processes leave no room.

    Raises:
        DoesNotFit: the device has less left than this process would still take.
    """
    held, free = memory_now(device), free_bytes(device)
    ours = 0 if held.shared else held.bytes
    if plan.total_bytes - ours > free:
        raise DoesNotFit(
            f"The plan takes {format_bytes(plan.total_bytes)}, of which the process holds "
            f"{format_bytes(ours)} already, and the device has only {format_bytes(free)} left. "
            "Other processes hold the rest: end some of them, or give a smaller budget."
        )
