"""Keys and values in int8 on torch's engines: any cut, any capacity, and memories that move on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stand_in import random_decoder, write_bundle

from longspan.bundle import Bundle
from longspan.engines import Engine
from longspan.errors import BadInput, DoesNotFit
from longspan.models.config import (
    AnchorAttentionConfig,
    FullAttentionConfig,
    ModelConfig,
    WindowAttentionConfig,
)
from longspan.runtime.backends import Arrays, Backend, open_backend
from longspan.tensors import CacheDType, DType

MIXED = ModelConfig(
    family="llama",
    vocab_size=50,
    d_model=16,
    layers=(
        FullAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=8, d_conv=4),
        WindowAttentionConfig(n_heads=4, n_kv_heads=1, head_dim=8, window=6),
        AnchorAttentionConfig(n_heads=2, n_kv_heads=2, head_dim=8, anchor_every=7),
    ),
)
TOKENS = np.random.default_rng(0).integers(0, MIXED.vocab_size, 40)
ENGINES: list[Any] = ["torch-cpu", pytest.param("torch-cuda", marks=pytest.mark.gpu)]
DTYPES: list[DType] = ["float32", "bfloat16"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[DType, Bundle]:
    folder = tmp_path_factory.mktemp("int8")
    return {dtype: write_bundle(folder / dtype, MIXED, dtype) for dtype in DTYPES}


def opened(
    bundle: Bundle, engine: Engine, capacity: int, cache_dtype: CacheDType | None = "int8"
) -> Backend:
    return open_backend(
        bundle,
        engine=engine,
        memory_limit_bytes=None,
        capacity=capacity,
        cache_dtype=cache_dtype,
    )


def every_logits(backend: Backend, cuts: list[int]) -> NDArray[Any]:
    state, start, rows = backend.new_state(), 0, []
    for length in cuts:
        logits, state = backend.forward(TOKENS[start : start + length], state, keep=range(length))
        rows.append(logits)
        start += length
    return np.concatenate(rows)


def relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [30, 1, 9]], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_any_cut_and_capacity_give_the_logits_of_one_pass(
    bundles: dict[DType, Bundle], engine: Engine, cuts: list[int]
) -> None:
    """Those of a decoder in float64 that quantizes alike."""
    decoder = random_decoder(MIXED, "float32").double()
    decoder.compute, decoder.cache_dtype = torch.float64, "int8"
    state = {
        name: value.double() if value.is_floating_point() else value
        for name, value in decoder.new_state(capacity=len(TOKENS)).items()
    }
    ids = torch.from_numpy(TOKENS)[None]
    expected = decoder(ids, torch.arange(len(TOKENS)), state)[0][0].numpy()
    found = every_logits(opened(bundles["float32"], engine, 57), cuts)
    assert relative(found, expected) < {"torch-cpu": 1e-5, "torch-cuda": 2e-3}[engine]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ENGINES)
def test_logits_stay_near_those_of_caches_that_are_not_quantized(
    bundles: dict[DType, Bundle], engine: Engine, dtype: DType
) -> None:
    cuts = [30, 1, 9]
    exact = every_logits(opened(bundles[dtype], engine, 40, None), cuts)
    found = every_logits(opened(bundles[dtype], engine, 40), cuts)
    assert 1e-4 < relative(found, exact) < 2e-2


@pytest.mark.parametrize("engine", ENGINES)
def test_the_state_takes_the_bytes_of_its_layout(
    bundles: dict[DType, Bundle], engine: Engine
) -> None:
    manifest = bundles["bfloat16"].manifest
    state = opened(bundles["bfloat16"], engine, 57).new_state()
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    assert found == {
        spec.name: (getattr(torch, spec.dtype), spec.shape)
        for spec in manifest.state_at(57, "int8")
    }
    assert found["layers.0.k"] == (torch.int8, (1, 57, 2, 8))
    assert found["layers.0.k_scale"] == (torch.bfloat16, (1, 57, 2))
    assert found["layers.1.v_scale"] == (torch.bfloat16, (1, 5, 1))
    entry = manifest.config.state_layout("bfloat16", 0, "int8")
    # Full attention and anchors: 2 heads of 8 numbers and a scale of 2 bytes, keys and values.
    assert sum(spec.entry_bytes for spec in entry) == 2 * 2 * 2 * (8 + 2)
    assert manifest.cache_entry_bytes == 2 * 2 * 2 * (8 * 2)


def read_some(backend: Backend, length: int) -> Arrays:
    return backend.to_arrays(backend.forward(TOKENS[:length], backend.new_state(), keep=[])[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_memory_comes_back_bit_for_bit(
    bundles: dict[DType, Bundle], engine: Engine, dtype: DType
) -> None:
    """Out in the manifest's dtype, in as int8, and out again."""
    bundle = bundles[dtype]
    reader = opened(bundle, engine, 23)
    _, state = reader.forward(TOKENS[:23], reader.new_state(), keep=[])
    arrays = reader.to_arrays(state)
    floats = opened(bundle, engine, 23, None)
    expected = read_some(floats, 23)
    assert {name: (value.dtype, value.shape) for name, value in arrays.items()} == {
        name: (value.dtype, value.shape) for name, value in expected.items()
    }
    other = opened(bundle, engine, 60)
    moved = other.from_arrays(arrays)
    for name, value in other.to_arrays(moved).items():
        np.testing.assert_array_equal(value, arrays[name])
    for name in ("layers.0.k", "layers.1.v", "layers.2.k_scale"):
        used = 5 if ".1." in name else 23 if ".0." in name else int(moved["layers.2.entries"])
        assert torch.equal(moved[name][:, :used], state[name][:, :used])
    found, _ = other.forward(TOKENS[23:], moved, keep=[-1])
    wanted, _ = reader_goes_on(bundle, engine, state)
    assert relative(found, wanted) < 1e-6


def reader_goes_on(bundle: Bundle, engine: Engine, state: Any) -> tuple[NDArray[Any], Any]:
    """The rest read where the first part was, in caches that have room."""
    wide = opened(bundle, engine, 60)
    padded = wide.new_state()
    for name, tensor in padded.items():
        tensor[tuple(slice(size) for size in state[name].shape)] = state[name]
    return wide.forward(TOKENS[23:], padded, keep=[-1])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_memory_of_floats_is_quantized_and_goes_on(
    bundles: dict[DType, Bundle], engine: Engine
) -> None:
    bundle = bundles["float32"]
    arrays = read_some(opened(bundle, "torch-cpu", 23, None), 23)
    exact = opened(bundle, engine, 40, None)
    expected, _ = exact.forward(TOKENS[23:], exact.from_arrays(arrays), keep=[-1])
    backend = opened(bundle, engine, 40)
    found, _ = backend.forward(TOKENS[23:], backend.from_arrays(arrays), keep=[-1])
    assert 1e-4 < relative(found, expected) < 2e-2
    graph = opened(bundle, "onnx-cpu", 40, None)
    written = backend.to_arrays(backend.from_arrays(arrays))
    moved, _ = graph.forward(TOKENS[23:], graph.from_arrays(written), keep=[-1])
    assert relative(moved, expected) < 2e-2


def test_slices_are_one_whole(
    bundles: dict[DType, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(bundles["bfloat16"], "torch-cpu", 40)
    whole = read_some(backend, 33)
    state = backend.from_arrays(whole)
    monkeypatch.setattr("longspan.runtime.backends.torch_caches.SLICE_NUMBERS", 50)
    for name, tensor in backend.from_arrays(whole).items():
        assert torch.equal(tensor, state[name])
    for name, value in backend.to_arrays(state).items():
        np.testing.assert_array_equal(value, whole[name])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_stays_as_it_was(bundles: dict[DType, Bundle], engine: Engine) -> None:
    backend = opened(bundles["float32"], engine, 60)
    _, first = backend.forward(TOKENS[:9], backend.new_state(), keep=[])
    before = {name: tensor.clone() for name, tensor in first.items()}
    once, second = backend.forward(TOKENS[9:20], first, keep=[-1])
    backend.forward(TOKENS[:16], second, keep=[])
    again, _ = backend.forward(TOKENS[9:20], first, keep=[-1])
    np.testing.assert_array_equal(once, again)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_are_a_chunk(bundles: dict[DType, Bundle], engine: Engine) -> None:
    backend = opened(bundles["float32"], engine, 40)
    expected = every_logits(backend, [40])
    _, state = backend.forward(TOKENS[:20], backend.new_state(), keep=[])
    steps = backend.steps(state)
    found = np.stack([steps.step(int(token)).copy() for token in TOKENS[20:]])
    after = backend.to_arrays(steps.state())
    steps.close()
    assert relative(found, expected[20:]) < {"torch-cpu": 1e-5, "torch-cuda": 2e-3}[engine]
    assert after["layers.0.k"].shape == (1, 40, 2, 8)


def test_more_entries_than_there_is_room_for_are_refused(bundles: dict[DType, Bundle]) -> None:
    arrays = read_some(opened(bundles["float32"], "torch-cpu", 30), 30)
    message = "The state has 30 entries in use in the cache layers.0.k, and the caches here have"
    with pytest.raises(DoesNotFit, match=message):
        opened(bundles["float32"], "torch-cpu", 29).from_arrays(arrays)


def test_a_graph_is_refused(bundles: dict[DType, Bundle]) -> None:
    with pytest.raises(BadInput) as refusal:
        opened(bundles["float32"], "onnx-cpu", 29)
    assert str(refusal.value) == (
        "Keys and values in int8 were asked for with onnx-cpu: a graph of ONNX Runtime keeps them "
        "in the dtype that it was exported with. Choose --backend torch, or the graph's own dtype."
    )
