"""Times of calls that are compared: in turn, as medians with their spread, beside the ceilings.

    ceilings = measure_ceilings("cuda", torch.bfloat16)
    timings = alternate({"ours": f, "theirs": g}, clock_for("cuda"), rounds=20, seconds=5.0)

It knows neither kernels nor models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch

Call = Callable[[], Any]
WARM_UPS = 2
LEAST_ROUNDS = 3
# Zeroed before each call on CUDA: more than any cache, and some 1.5 ms of an H100, within which
# the launches of the call are queued.
BALLAST_BYTES = 512 * 2**20
BALLAST_PASSES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds of one call: the median of so many, the least and the most."""

    median_ms: float
    least_ms: float
    most_ms: float
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Of milliseconds, at least one."""
        return cls(
            median_ms=median(samples),
            least_ms=min(samples),
            most_ms=max(samples),
            rounds=len(samples),
        )


class Clock(Protocol):
    """Tells how long a call takes."""

    def milliseconds(self, call: Call) -> float:
        """Run `call` once."""


class HostClock:
    """Wall time of a call that returns when it is done."""

    def milliseconds(self, call: Call) -> float:
        """Run `call` once."""
        started = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - started)


class CudaClock:
    """Time of a call on the device, between two events.

    The device is kept busy while Python queues the launches, so what counts is the device's own
    time, and the caches hold none of the call's inputs.
    """

    def __init__(self) -> None:
        self._ballast = torch.empty(BALLAST_BYTES, dtype=torch.uint8, device="cuda")

    def milliseconds(self, call: Call) -> float:
        """Run `call` once."""
        # torch annotates nothing of an event.
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        for _ in range(BALLAST_PASSES):
            self._ballast.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def clock_for(device: str) -> Clock:
    """Events on CUDA, wall time elsewhere."""
    return CudaClock() if device == "cuda" else HostClock()


def alternate(
    calls: Mapping[str, Call], clock: Clock, *, rounds: int, seconds: float
) -> dict[str, Timing]:
    """Time all calls in turn, round after round, after `WARM_UPS` rounds that do not count.

    Args:
        calls: by name.
        clock: what tells the time.
        rounds: the most rounds.
        seconds: no round begins after so many, once `LEAST_ROUNDS` are done.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(WARM_UPS):
        for call in calls.values():
            clock.milliseconds(call)
    started = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - started > seconds:
            break
        for name, call in calls.items():
            samples[name].append(clock.milliseconds(call))
    return {name: Timing.of(found) for name, found in samples.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the device does at best, as measured in the same run."""

    copy_bytes_per_second: float
    matmul_flops_per_second: float

    def floor(self, bytes_moved: float, flops: float) -> tuple[float, str]:
        """Milliseconds below which nothing can be, and what sets them."""
        by_memory = 1e3 * bytes_moved / self.copy_bytes_per_second
        by_products = 1e3 * flops / self.matmul_flops_per_second
        if by_memory >= by_products:
            return by_memory, "memory"
        return by_products, "matrix products"


def measure_ceilings(
    device: str,
    dtype: torch.dtype,
    *,
    clock: Clock | None = None,
    copy_bytes: int = 2**30,
    width: int = 8192,
    rounds: int = 10,
) -> Ceilings:
    """A copy within the device's memory, read and written, and a product of square matrices.

    Args:
        device: ``"cuda"`` or ``"cpu"``.
        dtype: of the matrices.
        clock: None for the device's own.
        copy_bytes: what is copied.
        width: rows and columns of the matrices.
        rounds: of each; the median counts.
    """
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # Random numbers: zeros draw less power, and clocks stay higher.
    left, right = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: left @ right}
    timings = alternate(calls, clock or clock_for(device), rounds=rounds, seconds=2.0)
    return Ceilings(
        copy_bytes_per_second=2e3 * copy_bytes / timings["copy"].median_ms,
        matmul_flops_per_second=2e3 * width**3 / timings["matmul"].median_ms,
    )


def extra_bytes(call: Call) -> int:
    """CUDA: the most that a call holds beyond its inputs and its outputs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated() - before
    peak: int = torch.cuda.max_memory_allocated() - before - held
    del result
    return peak
