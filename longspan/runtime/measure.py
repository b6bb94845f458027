"""Memory and speed against length: the same bundle and budget, one fresh process a length.

A fresh process starts with clean allocators, so the peak of a length is its own. Tokens are drawn
at random: what a model holds and how long it takes does not depend on what it reads.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from longspan.bundle import Bundle, open_bundle
from longspan.engines import BackendName, Device, Engine
from longspan.errors import BadInput, MissingExtra
from longspan.models.config import CacheUse
from longspan.runtime.doctor import examine
from longspan.runtime.runtime import load
from longspan.sizes import format_bytes

DECODE_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One length: bytes of the whole process on its device, seconds, tokens a second."""

    tokens: int
    chunk_tokens: int
    peak_bytes: int
    peak_source: str
    planned_bytes: int
    prefill_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The runs, and what they were made with."""

    device: str
    engine: Engine
    versions: dict[str, str]
    budget_bytes: int
    runs: tuple[Run, ...]

    def title(self) -> str:
        """What was measured, in a line."""
        return f"{self.device}, {self.engine}, budget {format_bytes(self.budget_bytes)}"

    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `rows`; those of numbers end with ``>``."""
        return (
            "tokens>",
            "chunk>",
            "peak MiB>",
            "planned MiB>",
            "read s>",
            "read tokens/s>",
            "step tokens/s>",
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The runs for people."""
        return [
            (
                f"{run.tokens:,}",
                f"{run.chunk_tokens:,}",
                f"{run.peak_bytes / 2**20:,.1f}",
                f"{run.planned_bytes / 2**20:,.1f}",
                f"{run.prefill_seconds:.2f}",
                f"{run.prefill_tokens_per_second:,.0f}",
                f"{run.decode_tokens_per_second:,.0f}",
            )
            for run in self.runs
        ]


def measure_bundle(
    bundle: str | Path,
    lengths: Sequence[int],
    *,
    budget: str | int | None = None,
    device: Literal["auto"] | Device = "auto",
    backend: Literal["auto"] | BackendName = "auto",
    on_start: Callable[[str], None] | None = None,
) -> Measurement:
    """Read each length in a process of its own, then decode `DECODE_TOKENS` steps.

    Args:
        bundle: its folder.
        lengths: tokens to read, each >= 1.
        budget: bytes that each process may hold; None for nine tenths of what is free.
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
    options = _Options(bundle=str(bundle), budget=budget, device=device, backend=backend)
    found = []
    for tokens in lengths:
        if on_start is not None:
            on_start(f"reading {tokens:,} tokens")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(_run, options, tokens).result())
    report = examine(device=device, backend=backend)
    return Measurement(
        device=report.device.name,
        engine=report.engine,
        versions=report.versions,
        budget_bytes=max(budget_bytes for budget_bytes, _ in found),
        runs=tuple(run for _, run in found),
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


def _run(options: _Options, tokens: int) -> tuple[int, Run]:
    """Measure one length, in this process; give the budget too."""
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
        warm = runtime.read_tokens([rng.integers(vocabulary, size=min(chunk, tokens))])
        runtime.decode_seconds(warm, 2)
        started = time.perf_counter()
        memory = runtime.read_tokens(
            rng.integers(vocabulary, size=min(chunk, tokens - start))
            for start in range(0, tokens, chunk)
        )
        prefill_seconds = time.perf_counter() - started
        decode_seconds = runtime.decode_seconds(memory, DECODE_TOKENS)
        measured = runtime.measured
        return measured.budget_bytes, Run(
            tokens=tokens,
            chunk_tokens=chunk,
            peak_bytes=measured.peak_bytes,
            peak_source=measured.peak_source,
            planned_bytes=measured.planned_bytes,
            prefill_seconds=prefill_seconds,
            prefill_tokens_per_second=tokens / prefill_seconds,
            decode_tokens_per_second=DECODE_TOKENS / decode_seconds,
        )


def draw(measurement: Measurement, path: Path) -> None:
    """Draw memory under the budget's line, and speed, against length, as a PNG.

    Raises:
        MissingExtra: matplotlib is not installed.
        BadInput: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra(
            needed_for="Drawing a plot", package="matplotlib", extra="plot"
        ) from error
    lengths = [run.tokens for run in measurement.runs]
    figure = Figure(figsize=(7, 6), layout="constrained")
    memory, speed = figure.subplots(2, 1, sharex=True)
    memory.plot(lengths, [run.peak_bytes / 2**20 for run in measurement.runs], "o-", label="peak")
    memory.plot(
        lengths, [run.planned_bytes / 2**20 for run in measurement.runs], "s--", label="planned"
    )
    memory.axhline(measurement.budget_bytes / 2**20, color="black", label="budget")
    memory.set(
        ylabel="MiB of the whole process",
        ylim=(0, 1.1 * measurement.budget_bytes / 2**20),
        title=measurement.title(),
    )
    speed.plot(
        lengths, [r.prefill_tokens_per_second for r in measurement.runs], "o-", label="reading"
    )
    speed.plot(
        lengths,
        [r.decode_tokens_per_second for r in measurement.runs],
        "s--",
        label="one token a step",
    )
    speed.set(xlabel="tokens read", ylabel="tokens a second", xscale="log", yscale="log")
    speed.set_xticks(
        lengths, [f"{n // 1024}K" if n % 1024 == 0 else f"{n}" for n in lengths], minor=False
    )
    speed.minorticks_off()
    for axes in (memory, speed):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"The plot {path} cannot be written: {error}. Name another file, as plot.png."
        ) from error
