"""Keys and values in int8 as a choice of the plan: when, why, why not, and what they take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stand_in import CACHED_DEMO, TINY, write_bundle

from longspan.bundle import Manifest
from longspan.engines import Engine
from longspan.errors import BadInput
from longspan.export.activations import chunk_bytes
from longspan.models.config import ModelConfig
from longspan.models.decoder import Decoder
from longspan.runtime.int8_caches import CacheChoice, held_in_int8
from longspan.runtime.plan import Plan, make_plan
from longspan.runtime.plan_entries import RESERVE_TOKENS
from longspan.runtime.plan_items import STATE_COPIES
from longspan.tensors import DType

MIB = 2**20
# Two layers of 2 heads of 48: keys and values in bfloat16, and in int8 with scales in bfloat16.
ENTRY_BYTES, NARROW_BYTES = 2 * 2 * 2 * 48 * 2, 2 * 2 * 2 * (48 + 2)


def manifest_of(config: ModelConfig = CACHED_DEMO, dtype: DType = "bfloat16") -> Manifest:
    return Manifest(
        config=config,
        dtype=dtype,
        parameters=1_000_000,
        weight_bytes=2_000_000,
        state=config.state_layout(dtype),
        chunk_bytes=chunk_bytes(config, dtype),
        files={},
        source={},
    )


def planned(
    budget_bytes: int,
    cache_dtype: CacheChoice | None,
    *,
    tokens: int | None = 100_000,
    engine: Engine = "torch-cuda",
    manifest: Manifest | None = None,
) -> Plan:
    return make_plan(
        manifest or manifest_of(),
        engine=engine,
        budget_bytes=budget_bytes,
        baseline_bytes=0,
        tokens=tokens,
        cache_dtype=cache_dtype,
    )


def test_a_document_that_fits_keeps_its_dtype() -> None:
    plan = planned(2**30, "auto")
    assert (plan.fits, plan.cache_dtype) == (True, None)
    assert plan.cache_reason == "the budget holds them in bfloat16"
    assert plan.cache_entry_bytes == ENTRY_BYTES
    assert plan.items == planned(2**30, None).items


def test_int8_is_what_comes_before_a_refusal() -> None:
    plain = planned(2**30, None)
    assert plain.cache_reason is None
    budget = plain.smallest_budget_bytes - 1
    plan = planned(budget, "auto")
    assert (plan.fits, plan.cache_dtype) == (True, "int8")
    assert plan.cache_reason == f"in bfloat16 they need a budget of {budget + 1:,} bytes"
    assert plan.cache_entry_bytes == NARROW_BYTES
    assert plan.capacity == 100_000 + RESERVE_TOKENS
    facts = plan.to_json()
    assert (facts["cache_dtype"], facts["cache_reason"]) == ("int8", plan.cache_reason)
    assert plan.summary().splitlines()[-1] == (
        f"Keys and values are kept in int8: {plan.cache_reason}."
    )
    least = plan.smallest_budget_bytes
    assert planned(least, "auto").fits
    assert not planned(least - 1, "auto").fits


@given(
    engine=st.sampled_from(["torch-cpu", "torch-cuda"]),
    budget=st.integers(2**24, 2**31),
    tokens=st.none() | st.integers(1, 10**6),
)
def test_auto_takes_int8_only_where_nothing_else_fits(
    engine: Engine, budget: int, tokens: int | None
) -> None:
    plans = {
        asked: planned(budget, asked, tokens=tokens, engine=engine)
        for asked in (None, "int8", "auto")
    }
    chosen = plans["auto"]
    assert chosen.cache_dtype == (None if plans[None].fits else "int8")
    assert chosen.fits == (plans[None].fits or plans["int8"].fits)
    assert chosen.items == plans[None if plans[None].fits else "int8"].items
    assert plans["int8"].cache_dtype == "int8"


@pytest.mark.parametrize("engine", ["onnx-cpu", "onnx-cuda"])
def test_a_graph_keeps_its_dtype_and_the_plan_says_why(engine: Engine) -> None:
    plan = planned(1, "auto", engine=engine)
    assert (plan.fits, plan.cache_dtype) == (False, None)
    why = "a graph of ONNX Runtime keeps them in the dtype that it was exported with"
    assert plan.cache_reason == why
    assert plan.summary().splitlines()[-1] == (
        f"Keys and values are kept in the dtype of the weights: {why}."
    )
    with pytest.raises(BadInput) as refusal:
        planned(2**30, "int8", engine=engine)
    assert str(refusal.value) == (
        f"Keys and values in int8 were asked for with {engine}, and {why}. Choose --backend torch, "
        "or leave --cache out."
    )


def test_a_model_without_keys_has_none_to_keep() -> None:
    config = ModelConfig(family="mamba", vocab_size=9, d_model=16, layers=TINY.layers[:2])
    manifest = manifest_of(config)
    plan = planned(2**30, "auto", manifest=manifest)
    assert plan.cache_reason == "no layer of the model keeps keys and values"
    with pytest.raises(BadInput) as refusal:
        planned(2**30, "int8", manifest=manifest)
    assert str(refusal.value) == (
        "Keys and values in int8 were asked for with torch-cuda, and no layer of the model keeps "
        "keys and values. Leave --cache out."
    )


@pytest.mark.parametrize("config", [CACHED_DEMO, TINY], ids=lambda config: str(config.family))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_are_those_that_torch_allocates(config: ModelConfig, dtype: DType) -> None:
    held = held_in_int8(manifest_of(config, dtype), "torch-cuda")
    decoder = Decoder(config, dtype=getattr(torch, dtype), cache_dtype="int8")
    state = decoder.new_state(capacity=77)
    assert sum(tensor.nbytes for tensor in state.values()) == (
        held.state_bytes + 77 * held.cache_entry_bytes
    )


def test_a_window_in_int8_is_a_smaller_state() -> None:
    """It moves on where it lies, so nothing is beside it."""
    manifest = manifest_of(TINY)
    plain, narrow = (planned(2**30, asked, manifest=manifest) for asked in (None, "int8"))
    items = {item.name: item.bytes for item in plain.items}
    found = {item.name: item.bytes for item in narrow.items}
    # Keys and values of 5 tokens and 2 heads of 4 numbers.
    saved = STATE_COPIES["torch-cuda"] * 2 * 5 * 2 * (4 * 2 - (4 + 2))
    assert items["state"] - found["state"] == saved


# Reads the start and the end of a document, asks about it, and saves.
WHOLE_PROCESS = """
import json, sys
from dataclasses import replace
import numpy as np
import longspan

path, span, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
with longspan.load(path, budget="2GiB", tokens=tokens, device="cpu", backend="torch",
                   chunk_tokens=64, cache_dtype="int8") as runtime:
    rng = np.random.default_rng(0)
    memory = runtime.read_tokens([rng.integers(0, 4096, 600)])
    between = {
        name: np.full_like(array, tokens - 128) if name.endswith("position")
        else np.ones((1, tokens - 128, *array.shape[2:]), array.dtype)
        for name, array in memory.state.items()
    }
    memory = replace(memory, state=between)
    del between
    memory = runtime.read_tokens([rng.integers(0, 4096, 128)], memory=memory)
    runtime.decode_seconds(memory, 8)
    memory.save(span)
    del memory
    runtime.decode_seconds(runtime.open(span), 3)
    measured, plan = runtime.measured, runtime.plan
print(json.dumps({"peak": measured.peak_bytes, "planned": measured.planned_bytes,
                  "each": plan.cache_entry_bytes}))
"""


def test_a_process_stays_within_its_plan(tmp_path: Path) -> None:
    """1.3 is how far a plan may be above what is used."""
    bundle = write_bundle(tmp_path / "bundle", CACHED_DEMO)
    arguments = [str(bundle.path), str(tmp_path / "memory.span"), "9000"]
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_PROCESS, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["each"] == 2 * 2 * 2 * (48 + 4)
    assert seen["peak"] <= seen["planned"] <= 1.3 * seen["peak"], seen
    # The file holds them in the manifest's dtype.
    assert (tmp_path / "memory.span").stat().st_size > 9000 * bundle.manifest.cache_entry_bytes
