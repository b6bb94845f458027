"""From a bundle and a budget to a plan, and to a loaded `Runtime`.

plan_bundle("bundle/", budget="2GiB").fits
with load("bundle/", budget="2GiB") as runtime:
    memory = runtime.read("book.txt")
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from longspan.bundle import Bundle, open_bundle
from longspan.engines import BackendName, Device
from longspan.runtime.backends import Backend, open_backend
from longspan.runtime.backends.choice import EngineChoice, choose_engine
from longspan.runtime.baseline import measure_baseline
from longspan.runtime.budget import Budget
from longspan.runtime.byte_tokens import bundle_tokenizer
from longspan.runtime.device_memory import free_bytes
from longspan.runtime.documents import Source, open_document
from longspan.runtime.drafting import CHUNK_TOKENS as DRAFT_CHUNK_TOKENS
from longspan.runtime.drafting import Draft, draft_items, require_fixed_state
from longspan.runtime.loaded import Runtime
from longspan.runtime.measured import BudgetWatch
from longspan.runtime.memory import entries_of
from longspan.runtime.plan import Plan, make_plan, require_fit
from longspan.runtime.plan_items import PlanItem
from longspan.runtime.plan_streaming import choose_placement, require_host_memory
from longspan.runtime.plan_weights import PlacedWeights, place_weights, weight_sizes
from longspan.runtime.rates import PROBE_BYTES, measure_rates, shares_host_memory
from longspan.runtime.recording import why_not_recorded
from longspan.runtime.room import Room

__all__ = ["Runtime", "load", "plan_bundle"]


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

    Raises:
        BadBundle: there is no bundle.
        BadInput: a value is out of its range, or the device is not there.
    """
    choice = choose_engine(device=device, backend=backend)
    small = None if draft is None else _opened(draft)
    plan, _ = _plans(_opened(bundle), small, choice, budget, chunk_tokens, tokens, cache_entries)
    return plan


def load(
    bundle: str | Path | Bundle,
    *,
    budget: str | int | Budget | None = None,
    tokens: int | None = None,
    cache_entries: int | None = None,
    device: Literal["auto"] | Device = "auto",
    backend: Literal["auto"] | BackendName = "auto",
    chunk_tokens: int | None = None,
    threads: int | None = None,
    draft: str | Path | Bundle | None = None,
) -> Runtime:
    """Load a bundle, if its plan fits the budget.

    A model whose state grows gets caches for a document of `tokens`, and for a question and its
    answer; where no length is given, the largest that the budget holds (`longspan.runtime.plan`).

    Args:
        bundle: its folder.
        budget: bytes that the whole process may hold on the device, as ``"2GiB"``; None for nine
            tenths of what is free.
        tokens: length of the document that will be read; None for any.
        cache_entries: entries that it takes in each cache; None for what any `tokens` take.
        device: where to run.
        backend: what runs it.
        chunk_tokens: tokens that go through the model together; None for the most that fits.
        threads: CPU threads; None for all physical cores.
        draft: the folder of a smaller bundle that drafts answers for this one to accept or reject
            (`longspan.runtime.speculative`): the same answers in fewer passes. It runs beside it,
            and its plan comes off the budget first.

    Raises:
        BadBundle: there is no bundle, or it cannot be loaded.
        BadInput: a value is out of its range, or the device is not there.
        DoesNotFit: the plan is larger than the budget; nothing was loaded.
        MissingExtra: the backend needs a package that is not installed.
    """
    found, small = _opened(bundle), None if draft is None else _opened(draft)
    choice = choose_engine(device=device, backend=backend)
    plan, draft_plan = _plans(found, small, choice, budget, chunk_tokens, tokens, cache_entries)
    require_fit(plan)
    require_host_memory(plan, free_bytes("cpu"))
    with ExitStack() as stack:
        watch = stack.enter_context(BudgetWatch(choice.device, plan.budget_bytes))

        def opened(model: Bundle, model_plan: Plan, limit_bytes: int) -> Backend:
            opened_backend = open_backend(
                model,
                engine=plan.engine,
                memory_limit_bytes=limit_bytes,
                threads=threads,
                capacity=model_plan.capacity,
                step_graph=model_plan.step_graph,
                streamed_layers=model_plan.streamed_layers,
                expert_slots=model_plan.expert_slots,
            )
            stack.callback(opened_backend.close)
            return opened_backend

        helper = None
        if small is not None and draft_plan is not None:
            drafting = opened(small, draft_plan, draft_plan.total_bytes)
            helper = Draft(bundle=small, plan=draft_plan, backend=drafting)
        answering = opened(found, plan, plan.budget_bytes)
        return Runtime(found, plan, answering, watch, stack.pop_all(), helper)


def load_for(
    bundle: str | Path,
    *,
    document: Source | None = None,
    memory: Path | None = None,
    answer_tokens: int = 0,
    draft: str | Path | None = None,
    budget: str | None = None,
    device: Literal["auto"] | Device = "auto",
    backend: Literal["auto"] | BackendName = "auto",
) -> Runtime:
    """Load a bundle with caches for what is known to come; others need no such knowledge.

    Args:
        bundle: its folder.
        document: will be read; if it can be read again, its tokens are counted.
        memory: a `.span` file that will be asked.
        answer_tokens: most tokens of an answer.
        draft, budget, device, backend: as for `load`.

    Raises:
        BadDocument: the document cannot be read.
        BadMemory: the memory cannot be used with this bundle.
        BadBundle, BadInput, DoesNotFit, MissingExtra: as `load` does.
    """
    found, tokens, entries = open_bundle(bundle), None, None
    if found.manifest.cache_entry_bytes and memory is not None:
        entries = entries_of(memory, found.manifest) + answer_tokens
    elif found.manifest.cache_entry_bytes and document is not None:
        opened = open_document(document)
        if opened.again:
            nothing, tokenizer = Room.of(found.manifest, 0), bundle_tokenizer(found)
            room, tokens = nothing.after_document(opened, tokenizer, continues=False)
            entries = room.use.entries + answer_tokens
    return load(
        found,
        budget=budget,
        tokens=tokens,
        cache_entries=entries,
        device=device,
        backend=backend,
        draft=draft,
    )


def _opened(bundle: str | Path | Bundle) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else open_bundle(bundle)


def _plans(
    bundle: Bundle,
    draft: Bundle | None,
    choice: EngineChoice,
    budget: str | int | Budget | None,
    chunk_tokens: int | None,
    tokens: int | None,
    cache_entries: int | None,
) -> tuple[Plan, Plan | None]:
    """The plan with all that will be loaded, and the draft model's own."""
    if budget is None:
        budget = Budget.default(choice.device)
    elif not isinstance(budget, Budget):
        budget = Budget(budget)
    if draft is None:
        return _plan(bundle, choice, budget, chunk_tokens, tokens, cache_entries), None
    require_fixed_state(draft)

    def beside(no_step_graph: str | None) -> tuple[Plan, Plan]:
        small = _plan(
            draft, choice, budget, DRAFT_CHUNK_TOKENS, no_step_graph=no_step_graph, streams=False
        )
        items = draft_items(bundle.manifest, draft, small)
        return _plan(bundle, choice, budget, chunk_tokens, tokens, cache_entries, items), small

    found = beside(None)
    return (
        found if found[0].fits else beside("the larger model would not fit beside a recorded one")
    )


def _plan(
    bundle: Bundle,
    choice: EngineChoice,
    budget: Budget,
    chunk_tokens: int | None,
    tokens: int | None = None,
    cache_entries: int | None = None,
    beside: tuple[PlanItem, ...] = (),
    *,
    no_step_graph: str | None = None,
    streams: bool = True,
) -> Plan:
    tokenizer, manifest = bundle.tokenizer_path, bundle.manifest
    baseline_bytes = measure_baseline(choice.engine)

    def remake(weights: PlacedWeights | None, chunk: int | None) -> Plan:
        return make_plan(
            manifest,
            engine=choice.engine,
            budget_bytes=budget.bytes,
            baseline_bytes=baseline_bytes,
            tokens=tokens,
            cache_entries=cache_entries,
            chunk_tokens=chunk,
            tokenizer_file_bytes=0 if tokenizer is None else tokenizer.stat().st_size,
            beside=beside,
            no_step_graph=no_step_graph or why_not_recorded(manifest, choice.engine),
            weights=weights,
        )

    if choice.engine != "torch-cuda":
        return remake(None, chunk_tokens)
    sizes = weight_sizes(bundle.weights_path, manifest.config)
    # A smaller model than the probe of the machine's rates is not worth the probe.
    if not streams or manifest.weight_bytes < PROBE_BYTES or shares_host_memory():
        return remake(place_weights(sizes), chunk_tokens)
    return choose_placement(
        remake,
        sizes,
        lambda: measure_rates(manifest.dtype),
        parameters=manifest.parameters,
        chunk_tokens=chunk_tokens,
        tokens=tokens,
    )
