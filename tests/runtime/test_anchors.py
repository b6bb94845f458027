"""Anchors in every engine: any cut in the least caches, plain ONNX Runtime, from file to file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from stand_in import random_decoder, write_bundle

from longspan.bundle import Bundle
from longspan.engines import Engine
from longspan.errors import DoesNotFit
from longspan.models.config import (
    CacheUse,
    FullAttentionConfig,
    ModelConfig,
    with_anchors,
)
from longspan.runtime.backends import Backend, open_backend
from longspan.runtime.backends.onnx import OnnxBackend
from longspan.runtime.runtime import load
from longspan.runtime.verify import BY_CUT, verify_bundle

ENGINES: list[Any] = [
    "onnx-cpu",
    "torch-cpu",
    pytest.param("onnx-cuda", marks=pytest.mark.gpu),
    pytest.param("torch-cuda", marks=pytest.mark.gpu),
]
FULL = ModelConfig(
    family="llama",
    vocab_size=50,
    d_model=16,
    layers=(
        FullAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=4),
        FullAttentionConfig(n_heads=2, n_kv_heads=1, head_dim=6, rope_dims=4, qkv_bias=True),
    ),
)
RULES: dict[str, dict[str, Any]] = {
    "every": {"anchor_every": 7},
    "ids": {"anchor_ids": (3, 11)},
}
TOKENS = np.random.default_rng(0).integers(0, FULL.vocab_size, 60)
TOKENS[np.arange(5, 60, 9)] = 11
CUTS = ([60], [1] * 60, [7] * 8 + [4], [30, 1, 29], [5, 1, 8, 46])
# float32 sums in another order; on CUDA also another exp.
TOLERANCE = {"cpu": 2e-5, "cuda": 1e-3}


@pytest.fixture(scope="module", params=RULES.values(), ids=RULES.keys())
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("anchors")
    return write_bundle(folder / "bundle", with_anchors(FULL, **request.param))


@pytest.fixture(scope="module")
def oracle(bundle: Bundle) -> NDArray[Any]:
    """Logits float64 [L, V] of one pass of the decoder in float64."""
    decoder = random_decoder(bundle.manifest.config, "float32").double()
    decoder.compute = torch.float64
    state = {
        name: value.double() if value.is_floating_point() else value
        for name, value in decoder.new_state(capacity=len(TOKENS)).items()
    }
    logits, _ = decoder(torch.from_numpy(TOKENS)[None], torch.arange(len(TOKENS)), state)
    result: NDArray[Any] = logits[0].numpy()
    return result


def least_capacity(bundle: Bundle) -> int:
    return CacheUse.of(bundle.manifest.config).after(TOKENS).entries


def opened(bundle: Bundle, engine: Engine, capacity: int) -> Backend:
    return open_backend(bundle, engine=engine, memory_limit_bytes=None, capacity=capacity)


def close(engine: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    bound = TOLERANCE["cuda" if "cuda" in engine else "cpu"]
    np.testing.assert_allclose(found, expected, rtol=bound, atol=bound)


def test_the_least_caches_are_smaller_than_the_text(bundle: Bundle) -> None:
    assert least_capacity(bundle) <= 30


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: f"{len(cuts)} calls")
@pytest.mark.parametrize("engine", ENGINES)
def test_any_cut_gives_the_logits_of_one_pass(
    bundle: Bundle, oracle: NDArray[Any], engine: Engine, cuts: list[int]
) -> None:
    backend = opened(bundle, engine, least_capacity(bundle))
    state, start, rows = backend.new_state(), 0, []
    use = CacheUse.of(bundle.manifest.config)
    for length in cuts:
        part = TOKENS[start : start + length]
        logits, state = backend.forward(part, state, keep=range(length))
        rows.append(logits)
        start += length
        use, arrays = use.after(part), backend.to_arrays(state)
        # What is in use, counted from the tokens alone.
        (counted,) = use.caches
        found = {name: int(arrays[f"layers.0.{name}"][0]) for name in ("anchors", "entries")}
        assert found == {"anchors": counted.anchors, "entries": counted.entries}
        assert arrays["layers.0.k"].shape[1] == counted.entries
        assert CacheUse.of(bundle.manifest.config, arrays).caches == use.caches
    close(engine, np.concatenate(rows), oracle)


@pytest.mark.parametrize("graph", ["model.cpu.onnx", "model.onnx"])
def test_plain_onnxruntime_needs_no_bookkeeping(
    bundle: Bundle, oracle: NDArray[Any], graph: str
) -> None:
    """Zeros, then each call's outputs are the next one's inputs, in buffers of one size."""
    session: Any = onnxruntime.InferenceSession(
        bundle.path / graph, providers=["CPUExecutionProvider"]
    )
    state = {
        spec.name: np.zeros(spec.shape, spec.dtype)
        for spec in bundle.manifest.state_at(least_capacity(bundle))
    }
    names, rows, start = ["logits", *(f"present.{name}" for name in state)], [], 0
    for length in (13, 1, 1, 20, 1, 24):
        feeds = {f"past.{name}": value for name, value in state.items()}
        feeds |= {"tokens": TOKENS[None, start : start + length], "keep": np.arange(length)}
        logits, *after = session.run(names, feeds)
        state = dict(zip(state, after, strict=True))
        rows.append(logits[0])
        start += length
    close("onnx-cpu", np.concatenate(rows), oracle)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("onnx-cpu", "torch-cpu"),
        ("torch-cpu", "onnx-cpu"),
        pytest.param("torch-cuda", "onnx-cpu", marks=pytest.mark.gpu),
        pytest.param("onnx-cpu", "torch-cuda", marks=pytest.mark.gpu),
        pytest.param("torch-cuda", "onnx-cuda", marks=pytest.mark.gpu),
    ],
)
def test_a_memory_goes_on_in_another_engine(
    bundle: Bundle, oracle: NDArray[Any], tmp_path: Path, first: Engine, second: Engine
) -> None:
    path = tmp_path / "half.span"
    for engine, part in ((first, TOKENS[:33]), (second, TOKENS[33:])):
        backend, device = engine.split("-")
        options: Any = {"backend": backend, "device": device}
        with load(bundle, budget="6GiB", tokens=60, chunk_tokens=16, **options) as runtime:
            before = runtime.open(path) if path.exists() else None
            memory = runtime.read_tokens([part], memory=before)
            memory.save(path)
    close(first + second, memory.last_logits, oracle[-1])
    assert memory.tokens == 60


def test_a_longer_text_is_refused_before_it_overflows(bundle: Bundle) -> None:
    capacity = least_capacity(bundle)
    with load(bundle, budget="2GiB", cache_entries=0, device="cpu", backend="onnx") as runtime:
        small = replace(runtime.plan, capacity=capacity - 1)
        runtime.plan = small
        with pytest.raises(DoesNotFit) as refusal:
            runtime.read_tokens([TOKENS])
    each = bundle.manifest.cache_entry_bytes
    text = str(refusal.value)
    assert f"to {capacity:,} entries, and they have room for {capacity - 1:,}:" in text
    assert f"{capacity - 1:,} x {each:,} bytes" in text
    assert text.endswith(
        f"Load the bundle with cache_entries={capacity} or more, and a budget that holds them; or "
        "export the checkpoint with --anchors every=auto --tokens N --budget SIZE, to have as many "
        "anchors as fit."
    )


def test_verification_reads_anchors(bundle: Bundle) -> None:
    checks = verify_bundle(bundle, device="cpu", tokens=40)
    assert len(checks) == 5
    assert all(check.passed and check.skipped is None for check in checks)


def test_verification_would_see_an_anchor_that_drops_nothing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a call's anchors count as tokens of the open segment, the cut shows."""
    forward = OnnxBackend.forward

    def forgetful(self: Any, tokens: Any, state: Any, *, keep: Any) -> Any:
        logits, after = forward(self, tokens, state, keep=keep)
        arrays = self.to_arrays(after)
        for name in arrays:
            if name.endswith("anchors"):
                arrays[name][:] = 0
        return logits, self.from_arrays(arrays)

    monkeypatch.setattr(OnnxBackend, "forward", forgetful)
    checks = verify_bundle(bundle, device="cpu", tokens=40)
    failed = {check.name for check in checks if not check.passed}
    assert failed >= {f"onnx-cpu {graph} in chunks" for graph in ("model.cpu.onnx", "model.onnx")}


def test_compressed_positions_are_held_against_torch_only(tmp_path: Path) -> None:
    config = with_anchors(
        replace(FULL, layers=FULL.layers[:1]), anchor_every=7, positions="compressed"
    )
    checks = verify_bundle(write_bundle(tmp_path / "bundle", config), device="cpu", tokens=40)
    assert [(check.name, check.skipped) for check in checks] == [
        ("torch-cpu in chunks", BY_CUT),
        ("onnx-cpu model.cpu.onnx in chunks", BY_CUT),
        ("onnx-cpu model.cpu.onnx against torch", None),
        ("onnx-cpu model.onnx in chunks", BY_CUT),
        ("onnx-cpu model.onnx against torch", None),
    ]
    assert all(check.passed for check in checks)
