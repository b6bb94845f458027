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
from longspan.runtime.drafting import CHUNK_TOKENS as DRAFT_CHUNK_TOKENS
from longspan.runtime.drafting import Draft, draft_items
from longspan.runtime.loaded import Runtime
from longspan.runtime.measured import BudgetWatch
from longspan.runtime.plan import Plan, PlanItem, make_plan, require_fit

__all__ = ["Runtime", "load", "plan_bundle"]


def plan_bundle(
    bundle: str | Path | Bundle,
    *,
    budget: str | int | Budget | None = None,
    tokens: int | None = None,
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
    plan, _ = _plans(_opened(bundle), small, choice, budget, chunk_tokens, tokens=tokens)
    return plan


def load(
    bundle: str | Path | Bundle,
    *,
    budget: str | int | Budget | None = None,
    device: Literal["auto"] | Device = "auto",
    backend: Literal["auto"] | BackendName = "auto",
    chunk_tokens: int | None = None,
    threads: int | None = None,
    draft: str | Path | Bundle | None = None,
) -> Runtime:
    """Load a bundle, if its plan fits the budget.

    Args:
        bundle: its folder.
        budget: bytes that the whole process may hold on the device, as ``"2GiB"``; None for nine
            tenths of what is free.
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
    plan, draft_plan = _plans(found, small, choice, budget, chunk_tokens)
    require_fit(plan)
    with ExitStack() as stack:
        watch = stack.enter_context(BudgetWatch(choice.device, plan.budget_bytes))

        def model(of: Bundle, limit_bytes: int) -> Backend:
            backend = open_backend(
                of, engine=plan.engine, memory_limit_bytes=limit_bytes, threads=threads
            )
            stack.callback(backend.close)
            return backend

        helper = None
        if small is not None and draft_plan is not None:
            held = model(small, draft_plan.total_bytes)
            helper = Draft(bundle=small, plan=draft_plan, backend=held)
        target = model(found, plan.budget_bytes)
        return Runtime(found, plan, target, watch, stack.pop_all(), helper)


def _opened(bundle: str | Path | Bundle) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else open_bundle(bundle)


def _plans(
    bundle: Bundle,
    draft: Bundle | None,
    choice: EngineChoice,
    budget: str | int | Budget | None,
    chunk_tokens: int | None,
    *,
    tokens: int | None = None,
) -> tuple[Plan, Plan | None]:
    """The plan with all that will be loaded, and the draft model's own."""
    if budget is None:
        budget = Budget.default(choice.device)
    elif not isinstance(budget, Budget):
        budget = Budget(budget)
    if draft is None:
        return _plan(bundle, choice, budget, chunk_tokens, tokens, beside=()), None
    small = _plan(draft, choice, budget, DRAFT_CHUNK_TOKENS, None, beside=())
    beside = draft_items(bundle.manifest, draft, small)
    return _plan(bundle, choice, budget, chunk_tokens, tokens, beside=beside), small


def _plan(
    bundle: Bundle,
    choice: EngineChoice,
    budget: Budget,
    chunk_tokens: int | None,
    tokens: int | None,
    *,
    beside: tuple[PlanItem, ...],
) -> Plan:
    tokenizer = bundle.tokenizer_path
    return make_plan(
        bundle.manifest,
        engine=choice.engine,
        budget_bytes=budget.bytes,
        baseline_bytes=measure_baseline(choice.engine),
        tokens=tokens,
        chunk_tokens=chunk_tokens,
        tokenizer_file_bytes=0 if tokenizer is None else tokenizer.stat().st_size,
        beside=beside,
    )
