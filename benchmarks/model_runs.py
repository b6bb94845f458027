"""One model through the public API: reading, steps after several contexts, memory.

    run = measure_shape("mamba2-2.7b", "bfloat16", options)     # in a process of its own

Tokens and weights are random: neither memory nor time depends on what is read.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from longspan.bundle import open_bundle
from longspan.engines import Device
from longspan.runtime.memory import Memory
from longspan.runtime.runtime import Runtime, load, plan_bundle
from longspan.tensors import DType

STEP_ROUNDS = 3
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What each process measures.

    Attributes:
        device: where.
        budget: of the whole process; None for what `over_weights` makes of it, or the default.
        over_weights: bytes beyond the process's context and the weights; None for no such limit.
        tokens: that are read.
        contexts: tokens before steps, in order; 0 stands for one token.
        steps: steps of a round, `STEP_ROUNDS` of which are timed.
        chunk_tokens: of a chunk; None for what the plan chooses.
    """

    device: Device
    budget: str | None
    over_weights: int | None
    tokens: int
    contexts: tuple[int, ...]
    steps: int
    chunk_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Steps after `context` tokens: milliseconds of one, median, least and most of rounds.

    `state_bytes` is what a step reads beside the weights.
    """

    context: int
    median_ms: float
    least_ms: float
    most_ms: float
    state_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One shape.

    Attributes:
        shape: its name.
        weight_bytes: of the bundle.
        context_bytes: what the process holds before any model.
        budget_bytes, planned_bytes, peak_bytes: of the whole process.
        tokens, chunk_tokens, read_seconds: of the reading.
        steps: after each context.
    """

    shape: str
    weight_bytes: int
    context_bytes: int
    budget_bytes: int
    planned_bytes: int
    peak_bytes: int
    tokens: int
    chunk_tokens: int
    read_seconds: float
    steps: tuple[Steps, ...]


def budget_over(bundle: Path, device: Device, tokens: int, over_weights: int) -> tuple[int, int]:
    """The context's bytes, and a budget of so much beyond it and the weights."""
    plan = plan_bundle(bundle, device=device, tokens=tokens, chunk_tokens=1, backend="torch")
    context = plan.items[0].bytes
    return context, context + open_bundle(bundle).manifest.weight_bytes + over_weights


class Reading:
    """Random tokens read into one memory, with the seconds that it took."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._rng = np.random.default_rng(0)
        self.memory: Memory | None = None
        self.tokens = 0
        self.seconds = 0.0

    def to(self, tokens: int) -> Memory:
        """Read on until there are `tokens`; states on their way from and to the host do not count.

        Raises:
            ValueError: so many were read before.
        """
        if tokens <= self.tokens:
            raise ValueError(f"{self.tokens:,} tokens are read already; {tokens:,} are not more")
        marks: list[float] = []

        def pieces() -> Iterator[NDArray[np.int64]]:
            marks.append(time.perf_counter())
            chunk = self._runtime.plan.chunk_tokens
            vocabulary = self._runtime.bundle.manifest.config.vocab_size
            for start in range(self.tokens, tokens, chunk):
                yield self._rng.integers(vocabulary, size=min(chunk, tokens - start))

        # The last chunk's logits are on the host when it is called.
        self.memory = self._runtime.read_tokens(
            pieces(),
            memory=self.memory,
            on_progress=lambda _: marks.append(time.perf_counter()),
        )
        self.seconds += marks[-1] - marks[0]
        self.tokens = tokens
        return self.memory


def time_steps(runtime: Runtime, memory: Memory, context: int, steps: int) -> Steps:
    """Steps after a memory, timed in rounds.

    A round is the difference of two answers, one twice as long: what answers begin with, recording
    a step where caches grow among it, is in both.
    """
    runtime.decode_seconds(memory, 2)
    rounds = []
    for _ in range(STEP_ROUNDS):
        shorter = runtime.decode_seconds(memory, steps)
        rounds.append(1e3 * (runtime.decode_seconds(memory, 2 * steps) - shorter) / steps)
    return Steps(
        context=context,
        median_ms=median(rounds),
        least_ms=min(rounds),
        most_ms=max(rounds),
        state_bytes=sum(array.nbytes for array in memory.state.values()),
    )


def run_bundle(shape: str, bundle: Path, options: Options) -> Run:
    """Measure one bundle in this process."""
    budget: str | int | None = options.budget
    most = max(options.tokens, *options.contexts)
    context_bytes, over = budget_over(bundle, options.device, most, options.over_weights or 0)
    if options.over_weights is not None:
        budget = over
    with load(
        bundle,
        budget=budget,
        tokens=most,
        device=options.device,
        backend="torch",
        chunk_tokens=options.chunk_tokens,
    ) as runtime:
        first = runtime.read_tokens([np.zeros(min(runtime.plan.chunk_tokens, most), np.int64)])
        runtime.decode_seconds(first, 2)
        del first
        steps = []
        if 0 in options.contexts:
            one = runtime.read_tokens([np.zeros(1, np.int64)])
            steps.append(time_steps(runtime, one, 0, options.steps))
        reading = Reading(runtime)
        for context in sorted({*options.contexts, options.tokens} - {0}):
            memory = reading.to(context)
            if context == options.tokens:
                read_seconds = reading.seconds
            if context in options.contexts:
                steps.append(time_steps(runtime, memory, context, options.steps))
        measured = runtime.measured
        return Run(
            shape=shape,
            weight_bytes=runtime.bundle.manifest.weight_bytes,
            context_bytes=context_bytes,
            budget_bytes=measured.budget_bytes,
            planned_bytes=measured.planned_bytes,
            peak_bytes=measured.peak_bytes,
            tokens=options.tokens,
            chunk_tokens=runtime.plan.chunk_tokens,
            read_seconds=read_seconds,
            steps=tuple(steps),
        )


def measure_shape(shape: str, weights: str, name: str, options: Options) -> Run:
    """Write a bundle of a shape, and measure it in a process of its own, under a name."""
    from random_bundle import random_bundle

    with random_bundle(shape, weights) as bundle:
        return apart(run_bundle, name, bundle, options)


def copy_rate(device: Device, weights: DType) -> float:
    """Bytes a second of a copy, read and written, measured in this process."""
    import torch
    from timing import measure_ceilings

    copied, width = (2**30, 8192) if device == "cuda" else (2**26, 256)
    dtype = getattr(torch, weights)
    ceilings = measure_ceilings(device, dtype, copy_bytes=copied, width=width)
    return ceilings.copy_bytes_per_second


def apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """What `function` gives in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def transformers_run(tokens: int) -> dict[str, Any]:
    """transformers' Mamba-2 on CUDA: 8 layers of the 2.7B shape, random weights, one pass."""
    import torch
    import transformers
    from timing import CudaClock, alternate

    config = transformers.Mamba2Config(
        hidden_size=2560, num_hidden_layers=8, num_heads=80, head_dim=64, n_groups=1,
        state_size=128, vocab_size=50288, tie_word_embeddings=True,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"), torch.inference_mode():
        model: torch.nn.Module = transformers.Mamba2Model(config)
        ids = torch.randint(config.vocab_size, (1, tokens))
        calls = {"read": lambda: model(ids, use_cache=False)}
        timing = alternate(calls, CudaClock(), rounds=5, seconds=10.0)["read"]
    return {"version": transformers.__version__, "layers": 8, "tokens": tokens} | asdict(timing)
