"""Weights that stream: a second reading of a document under budgets, beside all on the device.

    runs = measure_streaming(bundle, ["2500MB", "1500MB"], tokens=65_536, device="cuda")

Each budget has a process of its own, which reads the document twice: the first time kernels are
compiled and memory is taken. The first run has as large a budget as there is memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from model_runs import Reading, apart
from numpy.typing import NDArray

from longspan.engines import Device
from longspan.runtime.plan_speed import ReadingSpeed
from longspan.runtime.plan_weights import place_weights, weight_sizes
from longspan.runtime.runtime import Runtime, load

STEPS = 16
COLUMNS = (
    "budget MiB", "layers streamed", "chunk", "read s", "predicted s", "tokens/s",
    "of all on the device", "peak MiB", "planned MiB", "off", "pinned MiB", "step ms", "logits off",
)  # fmt: skip
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedRun:
    """One budget.

    Attributes:
        budget_bytes, planned_bytes, peak_bytes: of the whole process on its device.
        layers, streamed_layers: of the model, and how many of them stream.
        pinned_bytes: of host memory.
        tokens, chunk_tokens: of the reading.
        read_seconds: of the second one.
        predicted_seconds: by the plan's model of copies and products; None on CPUs.
        step_ms: milliseconds of a step after it.
        logits_off: largest difference of the last logits to the first run's, over the largest.
    """

    budget_bytes: int
    planned_bytes: int
    peak_bytes: int
    layers: int
    streamed_layers: int
    pinned_bytes: int
    tokens: int
    chunk_tokens: int
    read_seconds: float
    predicted_seconds: float | None
    step_ms: float
    logits_off: float = 0.0


def measure_streaming(
    bundle: Path, budgets: Sequence[str], *, tokens: int, device: Device
) -> list[StreamedRun]:
    """The run with all weights on the device, then one for each budget.

    Raises:
        DoesNotFit: a budget is too small.
    """
    runs: list[StreamedRun] = []
    first: NDArray[np.float32] | None = None
    for budget in (None, *budgets):
        print(f"reading within {budget or 'what is free'}", file=sys.stderr, flush=True)
        run, logits = apart(run_streamed, bundle, budget, tokens, device)
        first = logits if first is None else first
        runs.append(replace(run, logits_off=float(abs(logits - first).max() / abs(first).max())))
    return runs


def run_streamed(
    bundle: Path, budget: str | None, tokens: int, device: Device
) -> tuple[StreamedRun, NDArray[np.float32]]:
    """Measure one budget in this process; also the logits after the last token."""
    with load(bundle, budget=budget, tokens=tokens, device=device, backend="torch") as runtime:
        Reading(runtime).to(tokens)
        reading = Reading(runtime)
        memory = reading.to(tokens)
        runtime.decode_seconds(memory, 2)
        step_ms = 1e3 * runtime.decode_seconds(memory, STEPS) / STEPS
        plan, measured = runtime.plan, runtime.measured
        run = StreamedRun(
            budget_bytes=plan.budget_bytes,
            planned_bytes=plan.total_bytes,
            peak_bytes=measured.peak_bytes,
            layers=len(runtime.bundle.manifest.config.layers),
            streamed_layers=len(plan.streamed_layers),
            pinned_bytes=plan.pinned_host_bytes,
            tokens=tokens,
            chunk_tokens=plan.chunk_tokens,
            read_seconds=reading.seconds,
            # The last: it may measure the machine's rates, which takes memory.
            predicted_seconds=predicted_seconds(runtime, tokens) if device == "cuda" else None,
            step_ms=step_ms,
        )
        return run, memory.last_logits


def predicted_seconds(runtime: Runtime, tokens: int) -> float:
    """What the plan expects of a reading."""
    from longspan.runtime.rates import known_rates

    bundle, plan = runtime.bundle, runtime.plan
    manifest = bundle.manifest
    sizes = weight_sizes(bundle.weights_path, manifest.config)
    speed = ReadingSpeed(
        sizes=sizes, rates=known_rates(manifest.dtype), parameters=manifest.parameters
    )
    placed = place_weights(sizes, plan.streamed_layers, plan.expert_slots)
    return tokens * speed.seconds(placed, chunk_tokens=plan.chunk_tokens, tokens=tokens)


def streaming_rows(runs: Sequence[StreamedRun]) -> Iterator[tuple[str, ...]]:
    """The runs for people."""
    for run in runs:
        predicted = run.predicted_seconds
        yield (
            f"{run.budget_bytes / MIB:,.0f}",
            f"{run.streamed_layers} of {run.layers}",
            f"{run.chunk_tokens:,}",
            f"{run.read_seconds:.3f}",
            "-" if predicted is None else f"{predicted:.3f}",
            f"{run.tokens / run.read_seconds:,.0f}",
            f"{runs[0].read_seconds / run.read_seconds:.0%}",
            f"{run.peak_bytes / MIB:,.1f}",
            f"{run.planned_bytes / MIB:,.1f}",
            f"{run.planned_bytes / run.peak_bytes - 1:+.1%}",
            f"{run.pinned_bytes / MIB:,.0f}",
            f"{run.step_ms:.2f}",
            f"{run.logits_off:.1e}",
        )
