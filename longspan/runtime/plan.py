"""The budget divided item by item, before anything is loaded. It loads and measures nothing.

plan = make_plan(manifest, engine="onnx-cpu", budget_bytes=2**28, baseline_bytes=66 * 2**20,
                 tokens=None)
require_fit(plan)         # or DoesNotFit, with the arithmetic
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longspan.bundle import Manifest
from longspan.engines import Engine, device_of
from longspan.errors import BadInput, DoesNotFit
from longspan.sizes import format_bytes
from longspan.tensors import DTYPE_BYTES

MIB = 2**20
FLOAT32_BYTES = 4
MIN_CHUNK_TOKENS = 16
# Measured on 2 cores with ONNX Runtime, Samba of 2.8M parameters: 1771 tokens/s with 64 tokens,
# 2180 with 128, 2221 with 256, 2240 with 512. On a GPU the chunk pays for launching the kernels.
MAX_CHUNK_TOKENS: dict[str, int] = {"cpu": 256, "cuda": 8192}
# What a chunk reads, what it writes, and the one to be asked again; while it is saved, a copy in
# host memory.
STATE_COPIES = {"cpu": 4, "cuda": 3}
# Logits float32 on the device and in the caller's hands, and while sampling a float64 copy, its
# order int64 and its running sum.
LOGITS_BYTES_PER_TOKEN_ID = {"cpu": 4 + 4 + 8 + 8 + 8, "cuda": 4 + 4}
# Measured with onnxruntime 1.31.1 on the CPU after one token, beyond weights and state: 4.6 MiB
# for 8 layers, 8.7 MiB for 16.
SESSION_BYTES = 3 * MIB
SESSION_BYTES_PER_LAYER = 35 * MIB // 100
# Measured with torch 2.13 on the CPU, beyond all that: scratch of its threads and of oneDNN.
TORCH_BYTES = 8 * MIB
# Measured with tokenizers 0.23: loading takes 5.3 MiB for a file of 0.25 MiB, 21.3 for one of 2.4;
# reading takes up to 1.8 more for its cache of words, and pieces of text on their way 1 to 2.
TOKENIZER_FACTOR = 8
TOKENIZER_BYTES = 9 * MIB
# torch's CUDA allocator takes memory in pieces: 2 MiB for tensors below 1 MiB, 20 MiB for those
# below 10 MiB (c10/cuda/CUDACachingAllocator.cpp): one unfilled piece of each in two pools.
ALLOCATOR_BYTES = 2 * (2 + 20) * MIB


# On CPUs the resident set grows by more than the tensors of the largest layer: over eight models of
# 2 to 16 layers and chunks of 64 to 256 tokens by 0.8 to 2.2 times as much. Memory freed by one
# layer is part of it, but the ratio stays 1.4 to 1.9 where freed memory goes back at once. ONNX
# Runtime's arena on CUDA grew by 2.3 times as much (H100, chunks of 512 to 2,048 tokens).
BESIDE_PERCENT = {"cpu": 100, "cuda": 130}
BESIDE_BYTES = 2 * MIB
# ONNX Runtime on CUDA loads its kernels and makes cuBLAS' and cuDNN's workspaces in the first
# chunk, outside its arena: 66 MiB on an H100 beyond the weights and their unfilled pieces.
ONNX_CUDA_BYTES = 96 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanItem:
    """One thing that takes memory."""

    name: str
    bytes: int


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
        longest_tokens: the longest document that fits; None for any length, as every layer of
            today has a state of fixed size.
    """

    engine: Engine
    budget_bytes: int
    chunk_tokens: int
    items: tuple[PlanItem, ...]
    smallest_budget_bytes: int
    longest_tokens: int | None = None

    @property
    def total_bytes(self) -> int:
        """The sum of all items."""
        return _sum(self.items)

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
            "items": [{"name": item.name, "bytes": item.bytes} for item in self.items],
        }
        if fit:
            facts["smallest_budget_bytes"] = self.smallest_budget_bytes
            facts["longest_tokens"] = self.longest_tokens
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
            longest = self.longest_tokens
            length = "any length" if longest is None else f"up to {longest:,} tokens"
            lines.append(
                f"The smallest budget that would do is {-(-self.smallest_budget_bytes // MIB)}MiB; "
                f"it reads documents of {length}."
            )
        return "\n".join(lines)


def make_plan(
    manifest: Manifest,
    *,
    engine: Engine,
    budget_bytes: int,
    baseline_bytes: int,
    tokens: int | None,
    chunk_tokens: int | None = None,
    tokenizer_file_bytes: int = 0,
) -> Plan:
    """Divide a budget.

    Args:
        manifest: of the bundle.
        engine: what computes.
        budget_bytes: what the whole process may hold on the engine's device.
        baseline_bytes: what it holds before any model, as
            `longspan.runtime.baseline.measure_baseline` reads it.
        tokens: length of the document, >= 1; chunks need not be longer. None for any length.
        chunk_tokens: tokens of a chunk, >= 1; None for the largest power of two that fits.
        tokenizer_file_bytes: size of the bundle's tokenizer file, 0 without one.

    Returns:
        The plan, which may not fit: then its chunk is the smallest.

    Raises:
        BadInput: the bundle tells nothing about `engine`, or a number is not positive.
    """
    _check(manifest, engine, tokens, chunk_tokens)
    fixed = _fixed_items(manifest, engine, baseline_bytes, tokenizer_file_bytes)
    base = _sum(fixed)
    sizes = [chunk_tokens] if chunk_tokens else _chunk_sizes(engine, tokens)
    totals = {size: base + _sum(_chunk_items(manifest, engine, size)) for size in sizes}
    chosen = next((size for size in sizes if totals[size] <= budget_bytes), sizes[-1])
    return Plan(
        engine=engine,
        budget_bytes=budget_bytes,
        chunk_tokens=chosen,
        items=(*fixed, *_chunk_items(manifest, engine, chosen)),
        smallest_budget_bytes=totals[sizes[-1]],
    )


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
    least = -(-plan.smallest_budget_bytes // MIB)
    raise DoesNotFit(
        f"The budget is {format_bytes(plan.budget_bytes)}, and {plan.engine} with chunks of "
        f"{plan.chunk_tokens:,} tokens needs {format_bytes(plan.total_bytes)}:\n"
        + "\n".join(rows)
        + f"\nThe smallest budget that would do is {least}MiB. {_advice(plan, least)}"
    )


def _check(
    manifest: Manifest, engine: Engine, tokens: int | None, chunk_tokens: int | None
) -> None:
    if engine not in manifest.chunk_bytes:
        known = ", ".join(sorted(manifest.chunk_bytes)) or "none"
        raise BadInput(
            f"The bundle tells how much memory it takes on {known}, and not on {engine}. Choose "
            "another --device or --backend, or export the checkpoint again."
        )
    for name, value in (("tokens", tokens), ("chunk_tokens", chunk_tokens)):
        if value is not None and value < 1:
            raise BadInput(f"{name} is {value}; it must be 1 or more.")


def _chunk_sizes(engine: Engine, tokens: int | None) -> list[int]:
    """Powers of two from the largest worth having down to the smallest."""
    size = MAX_CHUNK_TOKENS[device_of(engine)]
    while tokens is not None and size > MIN_CHUNK_TOKENS and size // 2 >= tokens:
        size //= 2
    sizes = [size]
    while sizes[-1] > MIN_CHUNK_TOKENS:
        sizes.append(sizes[-1] // 2)
    return sizes


def _sum(items: tuple[PlanItem, ...]) -> int:
    return sum(item.bytes for item in items)


def _chunk_items(manifest: Manifest, engine: Engine, tokens: int) -> tuple[PlanItem, ...]:
    """What a chunk of `tokens` tokens takes."""
    live = manifest.chunk_peak_bytes(engine, tokens)
    activations = PlanItem(name=f"activations of {tokens:,} tokens", bytes=live)
    if engine == "torch-cuda":
        return (activations,)
    beside = live * BESIDE_PERCENT[device_of(engine)] // 100 + BESIDE_BYTES
    return activations, PlanItem(name="held beside them between layers", bytes=beside)


def _fixed_items(
    manifest: Manifest, engine: Engine, baseline_bytes: int, tokenizer_file_bytes: int
) -> tuple[PlanItem, ...]:
    """Everything but the activations of a chunk."""
    device = device_of(engine)
    baseline = "interpreter and libraries" if device == "cpu" else "CUDA context and libraries"
    logits = manifest.config.vocab_size * LOGITS_BYTES_PER_TOKEN_ID[device]
    items = [
        PlanItem(name=baseline, bytes=baseline_bytes),
        *_weights(manifest, engine),
        PlanItem(
            name=f"state, {STATE_COPIES[device]} copies",
            bytes=STATE_COPIES[device] * manifest.state_bytes,
        ),
        PlanItem(name="logits and sampling", bytes=logits),
    ]
    if engine.startswith("onnx"):
        session = SESSION_BYTES + SESSION_BYTES_PER_LAYER * len(manifest.config.layers)
        items.append(PlanItem(name="ONNX Runtime's session", bytes=session))
    if engine == "torch-cpu":
        items.append(PlanItem(name="torch's threads and scratch", bytes=TORCH_BYTES))
    if engine == "onnx-cuda":
        items.append(PlanItem(name="ONNX Runtime's CUDA libraries", bytes=ONNX_CUDA_BYTES))
    if device == "cuda":
        items.append(PlanItem(name="allocator's unfilled pieces", bytes=ALLOCATOR_BYTES))
    if device == "cpu" and tokenizer_file_bytes:
        tokenizer = TOKENIZER_FACTOR * tokenizer_file_bytes + TOKENIZER_BYTES
        items.append(PlanItem(name="tokenizer and text", bytes=tokenizer))
    return tuple(items)


def _weights(manifest: Manifest, engine: Engine) -> list[PlanItem]:
    """The weights as the engine holds them: CPUs compute in float32."""
    if device_of(engine) == "cuda" or manifest.dtype == "float32":
        where = "mapped from the file" if device_of(engine) == "cpu" else "on the device"
        return [PlanItem(name=f"weights, {where}", bytes=manifest.weight_bytes)]
    if engine == "onnx-cpu":
        # 75M parameters widened by constant folding took 3% more than their own bytes.
        widened = manifest.parameters * FLOAT32_BYTES * 26 // 25
        # Rows of the embedding are looked up in the file's own dtype.
        rows = manifest.config.vocab_size * manifest.config.d_model * DTYPE_BYTES[manifest.dtype]
        return [
            PlanItem(name=f"weights, {manifest.dtype} widened to float32", bytes=widened),
            PlanItem(name="embedding, mapped from the file", bytes=rows),
        ]
    head = manifest.config.vocab_size * manifest.config.d_model
    return [
        PlanItem(name="weights, mapped from the file", bytes=manifest.weight_bytes),
        # A layer's widened weight is among its activations; the head comes after them.
        PlanItem(name="head widened to float32", bytes=head * FLOAT32_BYTES),
    ]


def _advice(plan: Plan, least_mib: int) -> str:
    give = f"Give --budget {least_mib}MiB"
    if plan.total_bytes > plan.smallest_budget_bytes:
        give += ", smaller chunks"
    if device_of(plan.engine) == "cuda":
        return f"{give}, or choose --device cpu."
    if plan.engine == "torch-cpu":
        return f"{give}, or choose --backend onnx, which needs no torch."
    return f"{give}, or export a smaller model."
