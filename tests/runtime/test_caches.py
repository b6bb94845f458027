"""Caches in every engine: any capacity, any cut, and on in another engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stand_in import CACHED, random_decoder, write_bundle

from longspan.bundle import Bundle
from longspan.engines import Engine
from longspan.errors import DoesNotFit
from longspan.models.config import CacheUse
from longspan.runtime.backends import Arrays, Backend, open_backend

ENGINES: list[Any] = [
    "onnx-cpu",
    "torch-cpu",
    pytest.param("onnx-cuda", marks=pytest.mark.gpu),
    pytest.param("torch-cuda", marks=pytest.mark.gpu),
]
TOKENS = np.random.default_rng(0).integers(0, CACHED.vocab_size, 40)
# Keys and values of two layers in float32: 2 heads of 4, one of 6.
ENTRY_BYTES = 2 * 4 * (2 * 4 + 6)
# float32 sums in another order; on CUDA also another exp, over 40 tokens.
TOLERANCE = {"cpu": 2e-5, "cuda": 1e-3}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("cached") / "bundle", CACHED)


@pytest.fixture(scope="module")
def oracle() -> NDArray[Any]:
    """Logits float64 [L, V] of the decoder in float64."""
    decoder = random_decoder(CACHED, "float32").double()
    decoder.compute = torch.float64
    state = {
        name: value.double() if value.is_floating_point() else value
        for name, value in decoder.new_state(capacity=len(TOKENS)).items()
    }
    ids = torch.from_numpy(TOKENS)[None]
    logits, _ = decoder(ids, torch.arange(len(TOKENS)), state)
    result: NDArray[Any] = logits[0].numpy()
    return result


def opened(bundle: Bundle, engine: Engine, capacity: int) -> Backend:
    return open_backend(bundle, engine=engine, memory_limit_bytes=None, capacity=capacity)


def close(engine: Engine, found: NDArray[Any], expected: NDArray[Any]) -> None:
    bound = TOLERANCE[engine.split("-")[1]]
    np.testing.assert_allclose(found, expected, rtol=bound, atol=bound)


def state_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [7] * 5 + [5], [30, 1, 9]], ids=str)
@pytest.mark.parametrize("capacity", [40, 57])
@pytest.mark.parametrize("engine", ENGINES)
def test_any_cut_and_capacity_give_the_logits_of_one_pass(
    bundle: Bundle, oracle: NDArray[Any], engine: Engine, capacity: int, cuts: list[int]
) -> None:
    backend = opened(bundle, engine, capacity)
    state, start, rows = backend.new_state(), 0, []
    for length in cuts:
        part = TOKENS[start : start + length]
        logits, state = backend.forward(part, state, keep=range(length))
        rows.append(logits)
        start += length
    close(engine, np.concatenate(rows), oracle)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_token_in_a_cache_of_one_entry(
    bundle: Bundle, oracle: NDArray[Any], engine: Engine
) -> None:
    backend = opened(bundle, engine, 1)
    logits, _ = backend.forward(TOKENS[:1], backend.new_state(), keep=[-1])
    close(engine, logits, oracle[:1])


@pytest.mark.parametrize("engine", ENGINES)
def test_only_what_is_in_use_is_given_out(bundle: Bundle, engine: Engine) -> None:
    """The manifest's formulas are the bytes of the arrays."""
    manifest = bundle.manifest
    assert manifest.cache_entry_bytes == ENTRY_BYTES
    backend = opened(bundle, engine, 57)
    state = backend.new_state()
    assert state_bytes(backend.to_arrays(state)) == manifest.state_bytes
    for used in (9, 10, 33):
        length = used - CacheUse.of(CACHED, backend.to_arrays(state)).entries
        _, state = backend.forward(TOKENS[:length], state, keep=[])
        arrays = backend.to_arrays(state)
        assert {name: value.shape for name, value in arrays.items()} == {
            spec.name: spec.shape for spec in manifest.state_at(used)
        }
        assert state_bytes(arrays) == manifest.state_bytes + used * ENTRY_BYTES
        assert CacheUse.of(CACHED, arrays).entries == used


def test_a_state_takes_the_bytes_that_the_manifest_tells(bundle: Bundle) -> None:
    state = opened(bundle, "torch-cpu", 57).new_state()
    found = sum(tensor.nbytes for tensor in state.values())
    assert found == sum(spec.nbytes for spec in bundle.manifest.state_at(57))
    assert found == bundle.manifest.state_bytes + 57 * ENTRY_BYTES


@pytest.mark.parametrize("second", ENGINES)
@pytest.mark.parametrize("first", ENGINES)
def test_a_state_goes_on_in_another_engine_and_capacity(
    bundle: Bundle, oracle: NDArray[Any], first: Engine, second: Engine
) -> None:
    reader, writer = opened(bundle, first, 23), opened(bundle, second, 60)
    _, state = reader.forward(TOKENS[:23], reader.new_state(), keep=[])
    arrays = reader.to_arrays(state)
    moved = writer.from_arrays(arrays)
    for name, value in writer.to_arrays(moved).items():
        np.testing.assert_array_equal(value, arrays[name])
    found, _ = writer.forward(TOKENS[23:], moved, keep=[-1])
    close("torch-cuda" if "cuda" in first + second else "torch-cpu", found[0], oracle[-1])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_stays_as_it_was(bundle: Bundle, engine: Engine) -> None:
    backend = opened(bundle, engine, 60)
    _, first = backend.forward(TOKENS[:9], backend.new_state(), keep=[])
    before = backend.to_arrays(first)
    once, second = backend.forward(TOKENS[9:20], first, keep=[-1])
    backend.forward(TOKENS[:16], second, keep=[])
    again, _ = backend.forward(TOKENS[9:20], first, keep=[-1])
    np.testing.assert_array_equal(once, again)
    for name, value in backend.to_arrays(first).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("engine", ENGINES)
def test_more_entries_than_there_is_room_for_are_refused(bundle: Bundle, engine: Engine) -> None:
    reader = opened(bundle, engine, 30)
    _, state = reader.forward(TOKENS[:30], reader.new_state(), keep=[])
    arrays = reader.to_arrays(state)
    with pytest.raises(DoesNotFit) as refusal:
        opened(bundle, engine, 29).from_arrays(arrays)
    assert str(refusal.value) == (
        "The state has 30 entries in use in the cache layers.0.k, and the caches here have room "
        "for 29. Load the model with cache_entries=30 or more, and a budget that holds them."
    )


def test_the_use_grows_by_an_entry_a_token() -> None:
    use = CacheUse.of(CACHED)
    assert use.entries == 0
    assert use.after(TOKENS).after(TOKENS[:3]).entries == 43
