"""Over random small models and budgets: plans keep their budget, formulas say what is allocated.

Activations are counted as torch allocates them: a dispatch mode adds up the storages that live at
once, beside weights and states, and the formula must hold their peak. What ONNX Runtime allocates
is counted in `test_onnx_live_bytes.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import WIDTH, random_layers
from stand_in import random_decoder
from torch.utils._python_dispatch import TorchDispatchMode

from longspan.bundle import Manifest
from longspan.engines import Engine
from longspan.export.activations import chunk_bytes
from longspan.models.config import (
    AnchorAttentionConfig,
    ConbaConfig,
    FullAttentionConfig,
    GlaConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    Quantization,
    WindowAttentionConfig,
)
from longspan.models.config.model import LAYER_KINDS
from longspan.models.decoder import Decoder
from longspan.runtime.plan import Plan, make_plan, replanned
from longspan.tensors import DType

ENGINES: tuple[Engine, ...] = ("onnx-cpu", "onnx-cuda", "torch-cpu", "torch-cuda")
LAYERS: tuple[LayerConfig, ...] = (
    MambaConfig(d_inner=128, d_state=8, d_conv=4, dt_rank=4),
    MambaConfig(d_inner=64, d_state=16, d_conv=3, dt_rank=8, bcdt_norm_eps=1e-6),
    Mamba2Config(n_heads=4, head_dim=32, n_groups=1, d_state=16, d_conv=4),
    Mamba2Config(n_heads=8, head_dim=16, n_groups=2, d_state=8, d_conv=4),
    GlaConfig(n_heads=2, key_dim=32, value_dim=64),
    GlaConfig(n_heads=2, key_dim=32, value_dim=64, gate_rank=None, rope_base=10000.0),
    ConbaConfig(n_heads=4, head_dim=16, d_state=8, d_select=64),
    ConbaConfig(n_heads=2, head_dim=32, d_state=16, d_select=48, gain="off"),
    WindowAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=16, window=32),
    FullAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=16),
    AnchorAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=16, anchor_every=1024),
    MlpConfig(d_ff=192),
    MoeConfig(n_experts=4, top_k=2, d_ff=96),
)
KINDS = [f"{layer.kind}-{at}" for at, layer in enumerate(LAYERS)]


def model(layers: tuple[LayerConfig, ...], vocab_size: int = 40) -> ModelConfig:
    return ModelConfig(family="none", vocab_size=vocab_size, d_model=WIDTH, layers=layers)


def manifest_of(config: ModelConfig, dtype: DType, weight_bytes: int = 10**6) -> Manifest:
    return Manifest(
        config=config,
        dtype=dtype,
        parameters=weight_bytes // 4,
        weight_bytes=weight_bytes,
        state=config.state_layout(dtype),
        chunk_bytes=chunk_bytes(config, dtype),
        files={},
        source={},
    )


def test_every_kind_of_layer_is_among_them() -> None:
    assert {layer.kind for layer in LAYERS} == set(LAYER_KINDS)


configs = st.lists(random_layers, min_size=1, max_size=5).map(lambda layers: model(tuple(layers)))
dtypes = st.sampled_from(["float32", "bfloat16", "float16"])


@given(
    config=configs,
    dtype=dtypes,
    engine=st.sampled_from(ENGINES),
    baseline=st.integers(0, 2**28),
    budget=st.integers(1, 2**31),
    tokens=st.none() | st.integers(1, 10**5),
)
@settings(deadline=None)
def test_a_plan_keeps_its_budget_and_its_word(
    config: ModelConfig,
    dtype: DType,
    engine: Engine,
    baseline: int,
    budget: int,
    tokens: int | None,
) -> None:
    manifest = manifest_of(config, dtype)

    def planned(budget_bytes: int) -> Plan:
        return make_plan(
            manifest,
            engine=engine,
            budget_bytes=budget_bytes,
            baseline_bytes=baseline,
            tokens=tokens,
        )

    plan = planned(budget)
    assert plan.fits == (plan.total_bytes <= budget)
    assert all(item.bytes >= 0 and item.name and item.source for item in plan.items)
    least = plan.smallest_budget_bytes
    assert planned(least).fits
    assert planned(least).total_bytes <= least
    assert not planned(least - 1).fits
    assert plan.fits == (budget >= least)
    fastest = plan.fastest_budget_bytes
    assert planned(fastest).fits

    def speed(budget_bytes: int) -> tuple[int, bool]:
        found = planned(budget_bytes)
        return found.chunk_tokens, found.step_graph

    assert speed(2**40) == speed(fastest)
    assert fastest == least or speed(fastest - 1) != speed(fastest)
    other = replanned(planned(2**31), manifest, budget)
    assert other.fits == (other.total_bytes <= budget)


@given(config=configs, dtype=dtypes, capacity=st.integers(0, 300))
@settings(deadline=None)
def test_the_state_is_what_is_allocated(config: ModelConfig, dtype: DType, capacity: int) -> None:
    manifest = manifest_of(config, dtype)
    with torch.device("meta"):
        decoder = Decoder(config, dtype=getattr(torch, dtype))
        state = decoder.new_state(capacity=capacity)
    allocated = sum(tensor.untyped_storage().nbytes() for tensor in state.values())
    assert allocated == manifest.state_bytes + capacity * manifest.cache_entry_bytes


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that were made inside and are alive.

    Attributes:
        now: bytes of them.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given_in = {_key(each) for each in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage, key = tensor.untyped_storage(), _key(tensor)
            if key in self._known or key in given_in:
                continue
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, storage.nbytes())
        return result

    def _gone(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in _tensors(each)]
    return []


@torch.inference_mode()
def most_live_bytes(config: ModelConfig, dtype: DType, tokens: int, capacity: int) -> int:
    """Bytes alive at the peak of a chunk on torch-cpu, without the weights and both states.

    The caches are nearly full, and all tokens are the same: routers send them to the same experts.
    """
    decoder = random_decoder(config, dtype)
    decoder.compute = torch.float32
    state, nothing = decoder.new_state(capacity=capacity), torch.empty(0, dtype=torch.int64)
    for length in (capacity - tokens - 1, 1) if capacity else (1,):
        _, state = decoder(torch.ones(1, length, dtype=torch.int64), nothing, state)
    with LiveBytes() as live:
        _, after = decoder(torch.ones(1, tokens, dtype=torch.int64), nothing, state)
    written = sum(each.untyped_storage().nbytes() for each in after.values())
    return live.peak - written


# Of what is small and fixed: counters, masks, positions.
SMALL_BYTES = 4096
# How far formulas may be above what lives at once: some add up what two phases of a layer hold.
# Of attention those are the projections, and a block's scores beside the keys that are seen.
ATTENTION = 1.85
MOST_ABOVE = {
    "moe": 1.7,
    "window_attention": ATTENTION,
    "full_attention": ATTENTION,
    "anchor_attention": ATTENTION,
}


def live_and_planned(config: ModelConfig, dtype: DType, tokens: int) -> tuple[int, int]:
    """Bytes of a chunk of one layer as they are on torch-cpu, and by the formula."""
    (layer,) = config.layers
    grows = any(spec.counter is not None for spec in config.state_layout(dtype))
    capacity = 2 * tokens + 1 if grows else 0
    # Anchors score the cache's entries and the chunk's, and here these together fill the cache.
    entries = capacity - tokens if layer.kind == "anchor_attention" else capacity
    planned = manifest_of(config, dtype).chunk_peak_bytes("torch-cpu", tokens, entries)
    return most_live_bytes(config, dtype, tokens, capacity), planned


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS, ids=KINDS)
def test_a_chunks_tensors_are_within_the_formula(layer: LayerConfig, dtype: DType) -> None:
    live, planned = live_and_planned(model((layer,)), dtype, 256)
    assert live <= planned
    assert planned <= MOST_ABOVE.get(layer.kind, 1.5) * live


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("layer", LAYERS, ids=KINDS)
def test_a_chunk_of_packed_matrices_is_within_the_formula(layer: LayerConfig, bits: int) -> None:
    """A matrix is dequantised for its product, and no other one is copied."""
    stored = Quantization(bits=bits, symmetric=False, experts=True)
    config = replace(model((layer,)), quantization=stored)
    live, planned = live_and_planned(config, "bfloat16", 256)
    assert live <= planned <= MOST_ABOVE.get(layer.kind, 1.5) * live


@given(
    layer=random_layers, dtype=st.sampled_from(["float32", "bfloat16"]), tokens=st.integers(64, 256)
)
@settings(deadline=None, max_examples=30)
def test_a_chunk_of_any_sizes_is_within_the_formula(
    layer: LayerConfig, dtype: DType, tokens: int
) -> None:
    live, planned = live_and_planned(model((layer,)), dtype, tokens)
    assert live <= planned + SMALL_BYTES
