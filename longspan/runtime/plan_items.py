"""What takes memory under a plan, item by item, with where each figure comes from.

items = (*fixed_items(manifest, engine, baseline_bytes, tokenizer_file_bytes),
         *cache_items(manifest, engine, capacity), *chunk_items(manifest, engine, 256, capacity))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from longspan.bundle import Manifest
from longspan.engines import Engine, device_of
from longspan.models.config import ConbaConfig, Mamba2Config, MambaConfig
from longspan.runtime.plan_arena import arena_bytes
from longspan.runtime.plan_graph import onnx_graph_arena_bytes, onnx_graph_bytes
from longspan.runtime.plan_session import session_bytes
from longspan.runtime.plan_unfilled import END_BYTES
from longspan.runtime.plan_weights import PlacedWeights
from longspan.runtime.weight_bytes import weight_bytes
from longspan.tensors import TensorSpec

MIB = 2**20
# What a chunk reads, what it writes, and the one to be asked again; while it is saved, a copy in
# host memory. torch has no second of those, but for a layer's next state where that cannot be
# written over the one before; ONNX Runtime has two.
STATE_COPIES: dict[Engine, int] = {"onnx-cpu": 3, "torch-cpu": 3, "onnx-cuda": 3, "torch-cuda": 1}
# What a call reads and what it writes, but for torch on CUDA, which writes into the caches that it
# is given, and of anchors a layer's next ones before these take their place. On CPUs also the
# memory that is asked or saved, in host memory.
CACHE_COPIES: dict[Engine, int] = {"onnx-cpu": 3, "torch-cpu": 3, "onnx-cuda": 2, "torch-cuda": 1}
# Logits float32 on the device and in the caller's hands, and while sampling a float64 copy, its
# order int64 and its running sum.
LOGITS_BYTES_PER_TOKEN_ID = {"cpu": 4 + 4 + 8 + 8 + 8, "cuda": 4 + 4}
# Measured with torch 2.13 on the CPU, beyond all that: scratch of its threads and of oneDNN, and
# blocks below the mmap threshold; it differs by 6 MiB from run to run of the same model.
TORCH_BYTES = 14 * MIB
# Of Mamba, and of Conba with a gain, a walk over tokens whose small tensors leave gaps in the heap.
# Models of width 512 took from run to run 318 to 332 MiB, 332 to 348 (Mamba), and 1 to 8 MiB more
# than without (Conba).
TORCH_BYTES_OF_A_WALK = 8 * MIB
# Measured with tokenizers 0.23: loading takes 5.3 MiB for a file of 0.25 MiB, 21.3 for one of 2.4;
# reading takes up to 1.8 more for its cache of words, and pieces of text on their way 1 to 2.
TOKENIZER_FACTOR = 8
TOKENIZER_BYTES = 9 * MIB
# Measured on an H100 with CUDA 13: what the driver takes once a second stream is used.
STREAM_BYTES = 70 * MIB
# ONNX Runtime on CUDA loads its kernels and makes cuBLAS' and cuDNN's workspaces in the first
# chunk, outside its heap: 66 to 70 MiB on an H100 (1.31.1, ten families, chunks of 16 to 4,096).
ONNX_CUDA_BYTES = 72 * MIB
# A heap grows by pages of 2 MiB, the last of which is not full, and holds constants of the graph:
# up to 1.2 MiB beyond the weights, where layers are Scans.
HEAP_BYTES = 4 * MIB
# What a recorded step takes beside its state. Measured on an H100 with torch 2.11, as what the
# process held beyond the context and torch's allocator in reading: 72 MiB for Mamba-2 2.7B, 78 for
# the built-in model and small ones of full attention and of Conba.
GRAPH_BYTES = 80 * MIB
RECORDED_STEP = "recorded step"


Stage = Literal["before", "loaded", "working"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanItem:
    """One thing that takes memory.

    Attributes:
        name: what it is.
        bytes: that it takes at most.
        source: "computed" from shapes and dtypes, or "measured" and where.
        stage: from when on it is held: "before" the model, once it is "loaded", or "working".
    """

    name: str
    bytes: int
    source: str = "computed"
    stage: Stage = "working"


def sum_bytes(items: Iterable[PlanItem]) -> int:
    """Bytes of all items."""
    return sum(item.bytes for item in items)


def chunk_items(
    manifest: Manifest, engine: Engine, tokens: int, capacity: int
) -> tuple[PlanItem, ...]:
    """What a chunk of `tokens` tokens takes, with caches of `capacity` entries, beside these.

    torch on CPUs computes where no more than two copies of the caches are, and a layer's next: the
    third is made when nothing is computed.
    """
    live = manifest.chunk_peak_bytes(engine, tokens, capacity)
    if engine == "torch-cpu" and manifest.cache_entry_bytes:
        third = capacity * manifest.cache_entry_bytes - _largest(manifest.state_at(capacity))
        live = max(manifest.chunk_peak_bytes(engine, tokens), live - max(0, third))
    activations = PlanItem(name=f"activations of {tokens:,} tokens", bytes=live)
    if engine == "torch-cuda":
        return activations, _unfilled(END_BYTES)
    if not engine.startswith("onnx"):
        return (activations,)
    around = arena_bytes(manifest, engine, tokens, capacity)
    name = "ONNX Runtime's arena around them" if engine == "onnx-cpu" else "gaps between them"
    source = "measured with onnxruntime 1.31 on many models"
    return activations, PlanItem(name=name, bytes=around, source=source)


def _unfilled(size: int) -> PlanItem:
    source = "measured on an H100 with torch 2.11"
    return PlanItem(name="allocator's unfilled pieces", bytes=size, source=source)


def step_items(manifest: Manifest, engine: Engine) -> tuple[PlanItem, ...]:
    """What a recorded step takes: its state's own buffers too; nothing on engines without one.

    torch overwrites one state, whose buffers are there from the start, unless it has caches; that
    its caches are a further copy, `copied_caches` tells. ONNX Runtime goes back and forth between
    two states, which lie where a chunk's did; its arena holds as much again.
    """
    if engine == "torch-cuda":
        stage: Stage = "working" if manifest.cache_entry_bytes else "loaded"
        return (
            _recorded(GRAPH_BYTES),
            PlanItem(name="state of the recorded step", bytes=manifest.state_bytes, stage=stage),
        )
    if engine == "onnx-cuda":
        return (_recorded(onnx_graph_bytes(manifest) + onnx_graph_arena_bytes(manifest)),)
    return ()


def _recorded(size_bytes: int) -> PlanItem:
    source = "measured on an H100, beside the state's own buffers"
    return PlanItem(name=RECORDED_STEP, bytes=size_bytes, source=source)


def cache_items(
    manifest: Manifest, engine: Engine, capacity: int, *, drafted: bool = False
) -> tuple[PlanItem, ...]:
    """What caches of `capacity` entries take; nothing for a state of fixed size.

    Args:
        manifest: of the bundle.
        engine: what computes.
        capacity: entries of each.
        drafted: whether a draft model guesses tokens. What it guessed is read beside the caches
            before, which are gone on from where it guessed wrong.
    """
    if not manifest.cache_entry_bytes:
        return ()
    copies = CACHE_COPIES[engine] + (drafted and engine.startswith("torch"))
    taken = copies * capacity * manifest.cache_entry_bytes
    name = f"cache of {capacity:,} entries"
    if copies > 1:
        return (PlanItem(name=f"{name}, {copies} copies", bytes=taken),)
    if manifest.config.anchor_layers:
        layer = _largest(manifest.state_at(capacity))
        return (PlanItem(name=f"{name} and a layer's next", bytes=taken + layer),)
    return (PlanItem(name=name, bytes=taken),)


def copied_caches(
    manifest: Manifest, engine: Engine, capacity: int, chunk: tuple[PlanItem, ...]
) -> tuple[PlanItem, ...]:
    """What torch's recorded step takes for its own caches beyond the room of a chunk's activations.

    They are filled from those of the memory that is asked, when no chunk is computed. What then
    lies unfilled is as much: with caches of 257 MiB an H100 held 13 MiB beside tensors.
    """
    if engine != "torch-cuda" or not manifest.cache_entry_bytes:
        return ()
    activations, *_ = chunk
    taken = max(0, capacity * manifest.cache_entry_bytes - activations.bytes)
    return (PlanItem(name="caches of the recorded step, beyond a chunk", bytes=taken),)


def fixed_items(
    manifest: Manifest,
    engine: Engine,
    baseline_bytes: int,
    tokenizer_file_bytes: int,
    baseline_source: str = "measured in this process",
    weights: PlacedWeights | None = None,
) -> tuple[PlanItem, ...]:
    """Everything that depends neither on the chunk nor on the length of the document."""
    device = device_of(engine)
    baseline = "interpreter and libraries" if device == "cpu" else "CUDA context and libraries"
    logits = manifest.config.vocab_size * LOGITS_BYTES_PER_TOKEN_ID[device]
    items = [
        PlanItem(name=baseline, bytes=baseline_bytes, source=baseline_source, stage="before"),
        *(_weights(manifest, engine) if weights is None else _placed(weights)),
        _state(manifest, engine),
        PlanItem(name="logits and sampling", bytes=logits),
    ]
    if engine == "onnx-cpu":
        items.append(
            PlanItem(
                name="ONNX Runtime's session",
                bytes=session_bytes(manifest),
                source="measured with onnxruntime 1.31",
                stage="loaded",
            )
        )
    if engine == "torch-cpu":
        items.append(
            PlanItem(
                name="torch's threads and scratch",
                bytes=TORCH_BYTES + (TORCH_BYTES_OF_A_WALK if _walks(manifest) else 0),
                source="measured with torch 2.13",
                stage="loaded",
            )
        )
    if engine == "onnx-cuda":
        items.append(
            PlanItem(
                name="ONNX Runtime's CUDA libraries",
                bytes=ONNX_CUDA_BYTES,
                source="measured on an H100 with onnxruntime 1.31",
                stage="loaded",
            )
        )
        items.append(
            PlanItem(name="the heap's last page, and constants", bytes=HEAP_BYTES, stage="loaded")
        )
    if device == "cpu" and tokenizer_file_bytes:
        tokenizer = TOKENIZER_FACTOR * tokenizer_file_bytes + TOKENIZER_BYTES
        items.append(
            PlanItem(
                name="tokenizer and text",
                bytes=tokenizer,
                source="measured with tokenizers 0.23",
                stage="loaded",
            )
        )
    return tuple(items)


def _state(manifest: Manifest, engine: Engine) -> PlanItem:
    """The states of fixed size that live at once, whether it is read or asked."""
    copies = STATE_COPIES[engine]
    name, taken = "state", copies * manifest.state_bytes
    if copies > 1:
        name += f", {copies} copies"
    if engine.startswith("torch"):
        on_cuda = device_of(engine) == "cuda"
        after = _next_on_cuda(manifest) if on_cuda else _largest(manifest.state)
        name, taken = f"{name} and a layer's next" if after else name, taken + after
    return PlanItem(name=name, bytes=taken)


def _next_on_cuda(manifest: Manifest) -> int:
    """Bytes of a layer's next state where its kernels cannot write over the one before.

    Of Mamba-2 several programs read that; tails of convolutions are small. The rest is overwritten.
    """
    dual = {i for i, layer in enumerate(manifest.config.layers) if isinstance(layer, Mamba2Config)}
    return _largest(spec for spec in manifest.state if int(spec.name.split(".")[1]) in dual)


def _largest(specs: Iterable[TensorSpec]) -> int:
    """Bytes of the largest layer's state."""
    return max(_by_layer(specs).values(), default=0)


def _by_layer(specs: Iterable[TensorSpec]) -> Counter[str]:
    """Bytes of each layer's state."""
    held: Counter[str] = Counter()
    for spec in specs:
        layer, _, _ = spec.name.rpartition(".")
        held[layer] += spec.nbytes
    return held


def _weights(manifest: Manifest, engine: Engine) -> list[PlanItem]:
    """The weights as the engine holds them."""
    return [
        PlanItem(name=name, bytes=taken, stage="loaded")
        for name, taken in weight_bytes(manifest, engine)
    ]


def _walks(manifest: Manifest) -> bool:
    """Whether a layer's tokens come one after the other."""
    return any(
        isinstance(layer, MambaConfig) or (isinstance(layer, ConbaConfig) and layer.gain != "off")
        for layer in manifest.config.layers
    )


def _placed(weights: PlacedWeights) -> list[PlanItem]:
    """The weights as torch-cuda holds them."""
    items = [PlanItem(name="weights, on the device", bytes=weights.resident_bytes, stage="loaded")]
    if weights.pinned_bytes:
        items.append(
            PlanItem(
                name="the driver's, for a stream of copies",
                bytes=STREAM_BYTES,
                source="measured on an H100 with CUDA 13",
                stage="loaded",
            )
        )
    if weights.layers:
        name = "two slots for streamed weights"
        items.append(PlanItem(name=name, bytes=weights.slots_bytes, stage="loaded"))
    if weights.expert_slots:
        name = f"{weights.expert_slots:,} slots for experts"
        items.append(PlanItem(name=name, bytes=weights.expert_slots_bytes, stage="loaded"))
    return items
