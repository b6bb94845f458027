"""A plan, in words and as data, and the refusal of one that does not fit.

`longspan.runtime.plan` makes it.

plan.fits, plan.total_bytes, plan.summary()
require_fit(plan)         # or DoesNotFit, with the arithmetic
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from longspan.engines import Engine, device_of
from longspan.errors import DoesNotFit
from longspan.runtime.plan_choices import Choice
from longspan.runtime.plan_items import MIB, RECORDED_STEP, PlanItem, sum_bytes
from longspan.sizes import format_bytes
from longspan.tensors import CacheDType


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where the bytes of a budget go.

    Attributes:
        engine: what computes.
        budget_bytes: what the whole process may hold on the engine's device.
        chunk_tokens: tokens that go through the model together while reading.
        items: what takes memory, in the order in which it comes.
        smallest_budget_bytes: the least budget that would do, with the smallest chunk (or with
            the chunk that was asked for).
        fastest_budget_bytes: the least budget for which nothing is slower than it need be: with
            the longest chunk that is of use (or the one that was asked for), all weights on the
            device, and a recorded step where the engine has those.
        longest_tokens: the longest document that fits, with the smallest chunk; None for any
            length, where every layer has a state of fixed size, and where the text decides how
            much it takes.
        most_entries: the most that a document may take in each cache, with the smallest chunk;
            None where the state does not grow.
        capacity: entries that each cache has room for; 0 where the state does not grow.
        reserve_entries: of them, for a question and its answer.
        cache_entry_bytes: bytes of one entry of every cache together.
        anchors: whether the caches hold anchors in place of what they close.
        tokens: length of the document that was planned for, if it is known.
        step_graph: whether answers replay a step that was recorded once.
        step_reason: why, in words.
        cache_dtype: what keys and values are kept in while the model runs; None for the manifest's
            dtype.
        cache_reason: why, in words; None where nothing else was asked for.
        choices: what was chosen and why, in that order.
        streamed_layers: whose weights wait in pinned host memory, and pass through two slots.
        expert_slots: experts that the device holds at once; 0 where it holds them all.
        pinned_host_bytes: of host memory, beside the budget of the device.
    """

    engine: Engine
    budget_bytes: int
    chunk_tokens: int
    items: tuple[PlanItem, ...]
    smallest_budget_bytes: int
    fastest_budget_bytes: int
    longest_tokens: int | None = None
    most_entries: int | None = None
    capacity: int = 0
    reserve_entries: int = 0
    cache_entry_bytes: int = 0
    anchors: bool = False
    tokens: int | None = None
    step_graph: bool = False
    step_reason: str = "the engine has no recorded steps"
    cache_dtype: CacheDType | None = None
    cache_reason: str | None = None
    choices: tuple[Choice, ...] = ()
    streamed_layers: tuple[int, ...] = ()
    expert_slots: int = 0
    pinned_host_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum of all items."""
        return sum_bytes(self.items)

    @property
    def working_bytes(self) -> int:
        """What chunks, states and logits take, but for what belongs to the recorded step alone."""
        working = [item for item in self.items if item.stage == "working"]
        return sum_bytes(item for item in working if item.name != RECORDED_STEP)

    @property
    def fits(self) -> bool:
        """Whether the sum is within the budget."""
        return self.total_bytes <= self.budget_bytes

    def to_json(self, *, fit: bool = False) -> dict[str, Any]:
        """The plan as data; with `fit` also what is the least and what is the most."""
        facts: dict[str, Any] = {
            "fits": self.fits,
            "engine": self.engine,
            "budget_bytes": self.budget_bytes,
            "total_bytes": self.total_bytes,
            "chunk_tokens": self.chunk_tokens,
            "capacity": self.capacity,
            "step_graph": self.step_graph,
            "step_reason": self.step_reason,
            "cache_dtype": self.cache_dtype,
            "cache_reason": self.cache_reason,
            "choices": [asdict(choice) for choice in self.choices],
            "streamed_layers": len(self.streamed_layers),
            "expert_slots": self.expert_slots,
            "pinned_host_bytes": self.pinned_host_bytes,
            "items": [asdict(item) for item in self.items],
        }
        if fit:
            facts["smallest_budget_bytes"] = self.smallest_budget_bytes
            facts["fastest_budget_bytes"] = self.fastest_budget_bytes
            facts["longest_tokens"] = self.longest_tokens
            facts["most_entries"] = self.most_entries
        return facts

    def summary(self, *, fit: bool = False) -> str:
        """The plan's verdict in words; with `fit` also what is the least and what is the most."""
        verdict = "fits" if self.fits else "does not fit"
        lines = [
            (
                f"{format_bytes(self.total_bytes)} together: it {verdict} the budget of "
                f"{format_bytes(self.budget_bytes)} ({self.engine}, chunks of "
                f"{self.chunk_tokens:,} tokens)."
            )
        ]
        if fit or not self.fits:
            lines.append(self.fit_text())
        if device_of(self.engine) == "cuda":
            how = "replay a recorded step" if self.step_graph else "launch every kernel of a step"
            lines.append(f"Answers {how}: {self.step_reason}.")
        if self.cache_reason is not None:
            kept = self.cache_dtype or "the dtype of the weights"
            lines.append(f"Keys and values are kept in {kept}: {self.cache_reason}.")
        return "\n".join(lines)

    def fit_text(self) -> str:
        """The smallest budget, the one that reads fastest, and the longest document, in words."""
        if self.most_entries is None:
            return f"{self.budgets_text}. Documents may be of any length."
        given = f"The budget of {format_bytes(self.budget_bytes)}"
        return f"{self.budgets_text}. {given} holds {self.longest}."

    @property
    def budgets_text(self) -> str:
        """The smallest budget, and the smallest that reads at full speed, in words."""
        least, fastest = _mib(self.smallest_budget_bytes), _mib(self.fastest_budget_bytes)
        faster = "" if fastest == least else f"; {fastest} is the smallest that reads at full speed"
        return f"The smallest budget that would do is {least}{faster}"

    @property
    def longest(self) -> str:
        """Which documents fit, in words, where the state grows."""
        if self.longest_tokens == 0:
            return "no document"
        if self.longest_tokens is not None:
            return f"documents of up to {self.longest_tokens:,} tokens"
        entries = f"{self.most_entries:,} anchors and tokens of the longest segment together"
        return f"documents of up to {entries}"


def require_fit(plan: Plan) -> None:
    """Refuse a plan that is larger than its budget.

    Raises:
        DoesNotFit: with every item, the least budget that would do, and what to change.
    """
    if plan.fits:
        return
    width = max(len(item.name) for item in (*plan.items, PlanItem(name="together", bytes=0)))
    rows = [f"  {item.name:<{width}}  {format_bytes(item.bytes):>10}" for item in plan.items]
    rows.append(f"  {'together':<{width}}  {format_bytes(plan.total_bytes):>10}")
    if plan.capacity:
        rows.append(_cache_arithmetic(plan))
    raise DoesNotFit(
        f"The budget is {format_bytes(plan.budget_bytes)}, and {plan.engine} with chunks of "
        f"{plan.chunk_tokens:,} tokens needs {format_bytes(plan.total_bytes)}:\n"
        + "\n".join(rows)
        + f"\n{plan.budgets_text}. "
        + _advice(plan)
    )


def _cache_arithmetic(plan: Plan) -> str:
    """Why the caches are so large, and what document would fit."""
    reserve, each = plan.reserve_entries, plan.cache_entry_bytes
    document = plan.capacity - reserve
    return (
        f"A copy of the cache has {document:,} entries for the document and {reserve:,} "
        f"for a question and its answer: {plan.capacity:,} x {each:,} bytes = "
        f"{format_bytes(plan.capacity * each)}. This budget holds {plan.longest}."
        + (_other_anchors(plan) if plan.anchors else "")
    )


def _other_anchors(plan: Plan) -> str:
    """How the same document might fit."""
    return (
        " To have as many anchors as fit, export the checkpoint with --anchors every=auto "
        f"--tokens {plan.tokens or 'N'} --budget {_mib(plan.budget_bytes)}."
    )


def _mib(size_bytes: int) -> str:
    """A size that `--budget` takes, rounded up."""
    return f"{-(-size_bytes // MIB)}MiB"


def _advice(plan: Plan) -> str:
    give = f"Give --budget {_mib(plan.smallest_budget_bytes)}"
    if plan.total_bytes > plan.smallest_budget_bytes:
        give += ", smaller chunks"
    if plan.capacity:
        give += ", a shorter document"
    if device_of(plan.engine) == "cuda":
        return f"{give}, or choose --device cpu."
    if plan.engine == "torch-cpu":
        return f"{give}, or choose --backend onnx, which needs no torch."
    return f"{give}, or export a smaller model."
