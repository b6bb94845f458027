"""What a runtime was seen to do: memory beside the plan, and speed.

with BudgetWatch("cpu", budget_bytes=2**30) as watch:
    watch.require()          # raises if the process holds more than the budget now
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from longspan.engines import Device
from longspan.errors import BudgetExceeded
from longspan.runtime.device_memory import PeakWatch, free_bytes, memory_now
from longspan.runtime.plan import Plan
from longspan.sizes import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Peak and plan in bytes of the whole process on its device; tokens and seconds since loading.

    Attributes:
        peak_bytes: the most that was held since `load`.
        peak_source: who counted it, in words.
        planned_bytes: the plan's total.
        budget_bytes: what may be held.
        prefill_tokens: tokens of documents that were read.
        prefill_seconds: spent in reading them.
        decode_tokens: tokens of answers that took a step of the model; the first takes none.
        decode_seconds: spent in computing them.
    """

    peak_bytes: int
    peak_source: str
    planned_bytes: int
    budget_bytes: int
    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float

    @classmethod
    def of(cls, watch: BudgetWatch, plan: Plan, *, prefill: Tally, decode: Tally) -> Measured:
        """What `watch` saw, beside `plan`, and how fast it went."""
        peak_bytes, peak_source = watch.peak()
        return cls(
            peak_bytes=peak_bytes,
            peak_source=peak_source,
            planned_bytes=plan.total_bytes,
            budget_bytes=plan.budget_bytes,
            prefill_tokens=prefill.tokens,
            prefill_seconds=prefill.seconds,
            decode_tokens=decode.tokens,
            decode_seconds=decode.seconds,
        )

    @property
    def prefill_tokens_per_second(self) -> float:
        """Speed of reading; 0 before anything was read."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed of answering; 0 before anything was asked."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(slots=True)
class Tally:
    """Tokens and the seconds they took."""

    tokens: int = 0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count some more."""
        self.tokens += tokens
        self.seconds += seconds


class BudgetWatch:
    """Compares what the process holds on `device` with the budget, and keeps the peak."""

    def __init__(self, device: Device, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._device: Device = device
        self._watch = PeakWatch(device)

    def __enter__(self) -> BudgetWatch:
        self._watch.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.__exit__(kind, error, trace)

    def require(self) -> int:
        """Bytes held now, checked.

        Raises:
            BudgetExceeded: they are more than the budget. Where the driver tells only what all
                processes hold together, that is no reason to stop this one.
        """
        self._watch.sample()
        now = memory_now(self._device)
        if now.bytes > self.budget_bytes and not now.shared:
            raise BudgetExceeded(
                f"The process holds {format_bytes(now.bytes)} ({now.source}), and the budget is "
                f"{format_bytes(self.budget_bytes)}."
            )
        return now.bytes

    def after_refusal(self) -> str:
        """What is held now and what could be, in words, once what a refused call held is gone."""
        now, free = memory_now(self._device), free_bytes(self._device)
        text = (
            f"It is given back: the process holds {format_bytes(now.bytes)} of "
            f"{format_bytes(self.budget_bytes)} now ({now.source})."
        )
        if not now.shared and free < self.budget_bytes - now.bytes:
            text += (
                f" The device has {format_bytes(free)} left, less than the budget: others hold the "
                "rest."
            )
        return text

    def peak(self) -> tuple[int, str]:
        """The most that was held since entering, and who counted it."""
        peak = self._watch.sample()
        return peak.bytes, peak.source
