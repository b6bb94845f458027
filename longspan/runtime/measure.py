"""Memory and speed against length and budget: one fresh process for each pair.

A fresh process starts with clean allocators, so the peak of a length is its own. Tokens are drawn
at random: what a model holds and how long it takes does not depend on what it reads.

measure_bundle("bundle/", [8192, 65536], budget=["1GiB", "2GiB"]).runs[0].peak_bytes
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longspan.bundle import Bundle, open_bundle
from longspan.engines import BackendName, Device, Engine
from longspan.errors import BadInput
from longspan.models.config import CacheUse
from longspan.runtime.backends.choice import choose_engine
from longspan.runtime.baseline import measure_baseline
from longspan.runtime.device_memory import memory_now, torch_peak
from longspan.runtime.doctor import examine
from longspan.runtime.plan import Plan
from longspan.runtime.plan_entries import RESERVE_TOKENS
from longspan.runtime.plan_items import Stage, sum_bytes
from longspan.runtime.runtime import load
from longspan.sizes import format_bytes

DECODE_TOKENS = 64
# No more than a plan's caches have room for beyond the document.
QUESTION_TOKENS = RESERVE_TOKENS // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is held from a stage of the work on: bytes by the plan, and as they were seen.

    Attributes:
        stage: "before" the model, "loaded" after one token, "working" at the peak; each without
            those before it.
        planned_bytes: of the plan's items of this stage.
        measured_bytes: by which the process grew. Weights that are mapped from a file come in as
            they are read, rows of an embedding with the words that name them.
    """

    stage: Stage
    planned_bytes: int
    measured_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One length under one budget: bytes of the whole process on its device, seconds, tokens.

    Attributes:
        budget_bytes: that the process might hold.
        tokens: that were read.
        chunk_tokens: that went through the model together.
        peak_bytes: the most that was seen.
        peak_source: who counted it.
        torch_peak_bytes: the most that torch's CUDA allocator gave out; None without it.
        planned_bytes: the plan's total.
        state_bytes: of the state after the last token, as a `.span` file holds it.
        prefill_seconds: of reading.
        prefill_tokens_per_second: of reading.
        decode_tokens_per_second: of steps after it.
        parts: planned beside measured, stage by stage.
        plan: as `longspan plan --json` shows it.
    """

    budget_bytes: int
    tokens: int
    chunk_tokens: int
    peak_bytes: int
    peak_source: str
    torch_peak_bytes: int | None
    planned_bytes: int
    state_bytes: int
    prefill_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    parts: tuple[Part, ...]
    plan: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The runs, and what they were made with; the largest budget stands for all in the title."""

    device: str
    engine: Engine
    versions: dict[str, str]
    budget_bytes: int
    runs: tuple[Run, ...]

    def title(self) -> str:
        """What was measured, in a line."""
        budgets = ", ".join(format_bytes(each) for each in self.budgets)
        return f"{self.device}, {self.engine}, budget {budgets}"

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets in bytes, each once, as they were given."""
        return tuple(dict.fromkeys(run.budget_bytes for run in self.runs))

    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `rows`; those of numbers end with ``>``."""
        return (
            "budget MiB>",
            "tokens>",
            "chunk>",
            "peak MiB>",
            "planned MiB>",
            "off>",
            "read s>",
            "read tokens/s>",
            "step tokens/s>",
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The runs for people."""
        return [
            (
                f"{run.budget_bytes / 2**20:,.0f}",
                f"{run.tokens:,}",
                f"{run.chunk_tokens:,}",
                f"{run.peak_bytes / 2**20:,.1f}",
                f"{run.planned_bytes / 2**20:,.1f}",
                f"{run.planned_bytes / run.peak_bytes - 1:+.1%}",
                f"{run.prefill_seconds:.2f}",
                f"{run.prefill_tokens_per_second:,.0f}",
                f"{run.decode_tokens_per_second:,.0f}",
            )
            for run in self.runs
        ]

    def part_rows(self) -> list[tuple[str, ...]]:
        """For each run: MiB that were planned and measured in each stage."""
        return [
            (
                f"{run.budget_bytes / 2**20:,.0f}",
                f"{run.tokens:,}",
                *(
                    f"{part.planned_bytes / 2**20:,.1f} / {part.measured_bytes / 2**20:,.1f}"
                    for part in run.parts
                ),
            )
            for run in self.runs
        ]


PART_COLUMNS = ("budget MiB>", "tokens>", "before the model>", "loaded>", "working>")


def measure_bundle(
    bundle: str | Path,
    lengths: Sequence[int],
    *,
    budget: str | int | Sequence[str | int] | None = None,
    device: Literal["auto"] | Device = "auto",
    backend: Literal["auto"] | BackendName = "auto",
    on_start: Callable[[str], None] | None = None,
) -> Measurement:
    """Read each length in a process of its own, decode steps, and read on from the memory.

    Args:
        bundle: its folder.
        lengths: tokens to read, each >= 1.
        budget: bytes that each process may hold, or several such; None for nine tenths of what is
            free.
        device: where to run.
        backend: what runs it.
        on_start: told before each length.

    Raises:
        BadInput: there is no length, or random tokens would tell nothing of the model's memory.
        DoesNotFit: the plan is larger than the budget; nothing was run.
        BudgetExceeded: a process held more than the budget.
    """
    if not lengths:
        raise BadInput("There is no length to measure. Give some, as in: --tokens 8K,64K,256K")
    _check_use(open_bundle(bundle))
    found = []
    for each in [budget] if budget is None or isinstance(budget, str | int) else budget:
        options = _Options(bundle=str(bundle), budget=each, device=device, backend=backend)
        for tokens in lengths:
            if on_start is not None:
                within = "" if each is None else f" within {each}"
                on_start(f"reading {tokens:,} tokens{within}")
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found.append(pool.submit(_run, options, tokens).result())
    report = examine(device=device, backend=backend)
    return Measurement(
        device=report.device.name,
        engine=report.engine,
        versions=report.versions,
        budget_bytes=max(run.budget_bytes for run in found),
        runs=tuple(found),
    )


def _check_use(bundle: Bundle) -> None:
    """Random tokens hold no sentences: where those decide what a text takes, they tell nothing."""
    if CacheUse.of(bundle.manifest.config).entries_after(1) is None:
        raise BadInput(
            f"Measuring reads random tokens, and in {bundle.path} tokens of the text are anchors, "
            "which decide how much it takes. Read a text of yours: longspan read BUNDLE DOCUMENT "
            "--out FILE.span --json tells its peak and speed."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What each process loads."""

    bundle: str
    budget: str | int | None
    device: Literal["auto"] | Device
    backend: Literal["auto"] | BackendName


def _run(options: _Options, tokens: int) -> Run:
    """Measure one length, in this process."""
    where = choose_engine(device=options.device, backend=options.backend)
    measure_baseline(where.engine)
    before = memory_now(where.device).bytes
    with load(
        options.bundle,
        budget=options.budget,
        tokens=tokens,
        device=options.device,
        backend=options.backend,
    ) as runtime:
        vocabulary = runtime.bundle.manifest.config.vocab_size
        rng = np.random.default_rng(0)
        chunk = runtime.plan.chunk_tokens
        if runtime.bundle.tokenizer_path is not None:
            runtime.tokenizer.encode(runtime.tokenizer.decode(rng.integers(vocabulary, size=8192)))
        runtime.read_tokens([rng.integers(vocabulary, size=1)])
        loaded = memory_now(where.device).bytes
        warm = runtime.read_tokens([rng.integers(vocabulary, size=min(chunk, tokens))])
        runtime.decode_seconds(warm, 2)
        del warm
        started = time.perf_counter()
        memory = runtime.read_tokens(
            rng.integers(vocabulary, size=min(chunk, tokens - start))
            for start in range(0, tokens, chunk)
        )
        prefill_seconds = time.perf_counter() - started
        decode_seconds = runtime.decode_seconds(memory, DECODE_TOKENS)
        # As a long question is read: from the memory, which is kept, with a chunk's activations.
        question = rng.integers(vocabulary, size=min(chunk, QUESTION_TOKENS))
        runtime.read_tokens([question], memory=memory)
        measured = runtime.measured
        return Run(
            budget_bytes=measured.budget_bytes,
            tokens=tokens,
            chunk_tokens=chunk,
            peak_bytes=measured.peak_bytes,
            peak_source=measured.peak_source,
            torch_peak_bytes=torch_peak() if where.device == "cuda" else None,
            planned_bytes=measured.planned_bytes,
            state_bytes=memory.nbytes,
            prefill_seconds=prefill_seconds,
            prefill_tokens_per_second=tokens / prefill_seconds,
            decode_tokens_per_second=DECODE_TOKENS / decode_seconds,
            parts=_parts(runtime.plan, before, loaded, measured.peak_bytes),
            plan=runtime.plan.to_json(),
        )


def _parts(plan: Plan, before: int, loaded: int, peak: int) -> tuple[Part, ...]:
    """The plan's stages beside what the process held at the end of each."""
    grown: dict[Stage, int] = {
        "before": before,
        "loaded": loaded - before,
        "working": peak - loaded,
    }
    return tuple(
        Part(
            stage=stage,
            planned_bytes=sum_bytes(item for item in plan.items if item.stage == stage),
            measured_bytes=measured_bytes,
        )
        for stage, measured_bytes in grown.items()
    )
