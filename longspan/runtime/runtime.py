"""From a bundle and a budget to a loaded `Runtime`.

with load("bundle/", budget="2GiB") as runtime:
    memory = runtime.read("book.txt")
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from longspan.bundle import Bundle, open_bundle
from longspan.engines import BackendName, Device, check_names
from longspan.errors import BadInput
from longspan.models.config import CacheUse
from longspan.runtime.backends import Backend, open_backend
from longspan.runtime.backends.choice import choose_engine
from longspan.runtime.baseline import MEASURED_NOW, measure_baseline
from longspan.runtime.budget import Budget
from longspan.runtime.byte_tokens import bundle_tokenizer
from longspan.runtime.device_memory import free_bytes
from longspan.runtime.documents import Source, open_document
from longspan.runtime.drafting import Draft
from longspan.runtime.int8_caches import CacheChoice
from longspan.runtime.loaded import Runtime
from longspan.runtime.measured import BudgetWatch
from longspan.runtime.memory import entries_of
from longspan.runtime.plan import Plan, require_fit
from longspan.runtime.plan_streaming import require_host_memory
from longspan.runtime.planning import Wanted, as_bundle, make_plans, plan_bundle, require_room
from longspan.runtime.room import Room

__all__ = ["Runtime", "load", "load_for", "plan_bundle"]


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
    cache_dtype: CacheChoice | None = None,
) -> Runtime:
    """Load a bundle, if its plan fits the budget.

    A model whose state grows gets caches for a document of `tokens`, and for a question and its
    answer; where no length is given, the largest that the budget holds (`longspan.runtime.plan`).

    Args:
        bundle: its folder, or ``"builtin"``, the one that ships in the package.
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
        cache_dtype: what keys and values are kept in while the model runs: "int8", which halves
            what they take of 16-bit ones, on torch's engines; "auto" for that where nothing fits
            without it; None for the dtype of the weights. `.span` files have that in any case.

    Raises:
        BadBundle: there is no bundle, or it cannot be loaded.
        BadInput: a value is out of its range, or the device is not there, or the engine or the
            model cannot have caches in int8.
        DoesNotFit: the plan is larger than the budget, or than what the device has left; nothing
            was loaded.
        MissingExtra: the backend needs a package that is not installed.
    """
    check_names(device=device, backend=backend, cache_dtype=cache_dtype)
    if threads is not None and threads < 1:
        raise BadInput(f"threads is {threads}; it must be 1 or more. Leave it out for all cores.")
    choice = choose_engine(device=device, backend=backend)
    wanted = Wanted(
        budget=budget,
        tokens=tokens,
        cache_entries=cache_entries,
        chunk_tokens=chunk_tokens,
        cache_dtype=cache_dtype,
    )
    found, small = as_bundle(bundle), None if draft is None else as_bundle(draft)
    baseline = measure_baseline(choice.engine), MEASURED_NOW
    plan, draft_plan = make_plans(found, small, choice, wanted, baseline)
    require_fit(plan)
    require_room(plan, choice.device)
    require_host_memory(plan, free_bytes("cpu"))
    with ExitStack() as stack:
        watch = stack.enter_context(BudgetWatch(choice.device, plan.budget_bytes))

        def opened(model: Bundle, its_plan: Plan, limit_bytes: int) -> Backend:
            opened_backend = open_backend(
                model,
                engine=its_plan.engine,
                memory_limit_bytes=limit_bytes,
                threads=threads,
                capacity=its_plan.capacity,
                working_bytes=its_plan.working_bytes,
                step_graph=its_plan.step_graph,
                cache_dtype=its_plan.cache_dtype,
                streamed_layers=its_plan.streamed_layers,
                expert_slots=its_plan.expert_slots,
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
    cache_dtype: CacheChoice | None = None,
) -> Runtime:
    """Load a bundle with caches for what is known to come; others need no such knowledge.

    Args:
        bundle: its folder.
        document: will be read; if it can be read again, its tokens are counted.
        memory: a `.span` file that will be asked.
        answer_tokens: most tokens of an answer.
        draft, budget, device, backend, cache_dtype: as for `load`.

    Raises:
        BadDocument: the document cannot be read.
        BadMemory: the memory cannot be used with this bundle.
        BadBundle, BadInput, DoesNotFit, MissingExtra: as `load` does.
    """
    found, tokens, entries = open_bundle(bundle), None, None
    added = CacheUse.most_added(found.manifest.config, answer_tokens)
    if found.manifest.cache_entry_bytes and memory is not None:
        entries = entries_of(memory, found.manifest) + added
    elif found.manifest.cache_entry_bytes and document is not None:
        opened = open_document(document)
        if opened.again:
            nothing, tokenizer = Room.of(found.manifest, 0), bundle_tokenizer(found)
            room, tokens = nothing.after_document(opened, tokenizer, continues=False)
            entries = room.use.entries + added
    return load(
        found,
        budget=budget,
        tokens=tokens,
        cache_entries=entries,
        device=device,
        backend=backend,
        draft=draft,
        cache_dtype=cache_dtype,
    )
