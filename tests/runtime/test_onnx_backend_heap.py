"""ONNX Runtime's backend for CUDA, whose heap and session are on the CPU here."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from host_pages import UNIT, HostPages
from stand_in import CACHED, TINY, write_bundle

from longspan.bundle import Bundle
from longspan.errors import BudgetExceeded, DoesNotFit
from longspan.runtime.backends import onnx as module
from longspan.runtime.backends import open_backend
from longspan.runtime.backends.onnx import OnnxBackend
from longspan.runtime.backends.onnx_heap import SessionMemory
from longspan.runtime.device_heap import DeviceHeap
from longspan.runtime.device_memory import Reading
from longspan.runtime.plan_items import ONNX_CUDA_BYTES

ROOM = 2**24
OUTSIDE = 5 * UNIT
WORKING = 40 * UNIT
TOKENS = np.arange(20) % 50
CAPACITY = 32


def copy(source: int, target: int, count: int) -> None:
    """In place of the driver's."""
    ctypes.memmove(target, source, count)


def cpu_session(bundle: Bundle, *, memory: SessionMemory, weights: dict[str, Any]) -> Any:
    """A session over the graph for CUDA, with the heap's weights."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for name, value in weights.items():
        options.add_initializer(name, value)
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(str(bundle.graph_path("cuda")), options, providers=providers)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[HostPages]]:
    """The pages of each heap that a backend makes."""
    made: list[HostPages] = []

    def new_pages() -> HostPages:
        made.append(HostPages(ROOM))
        return made[-1]

    monkeypatch.setattr(module, "DevicePages", new_pages)
    monkeypatch.setattr(module, "SessionMemory", partial(SessionMemory, device="cpu", copy=copy))
    monkeypatch.setattr(module, "cuda_session", cpu_session)
    monkeypatch.setattr(module, "warm_up_onnx", lambda device: None)
    monkeypatch.setattr(module, "memory_now", lambda device: Reading(bytes=OUTSIDE, source="test"))
    yield made
    gc.collect()
    assert all(each.closed for each in made), "what was loaded is freed"


def backend_of(
    bundle: Bundle, limit_bytes: int | None = None, working_bytes: int = WORKING
) -> tuple[OnnxBackend, DeviceHeap]:
    """A backend and its heap."""
    backend = OnnxBackend(
        bundle, engine="onnx-cuda", memory_limit_bytes=limit_bytes, threads=1,
        capacity=CAPACITY, working_bytes=working_bytes,
    )  # fmt: skip
    # Steps put their token and logits on the session's device.
    backend._device = "cpu"
    assert backend._memory is not None
    return backend, backend._memory.heap


@pytest.mark.parametrize("config", [TINY, CACHED], ids=["fixed", "growing"])
def test_chunks_and_steps_are_those_of_the_cpu(
    pages: list[HostPages], tmp_path: Path, config: Any
) -> None:
    bundle = write_bundle(tmp_path / "bundle", config)
    plain = open_backend(bundle, engine="onnx-cpu", memory_limit_bytes=None, capacity=CAPACITY)
    backend, heap = backend_of(bundle)
    grown = list(pages[0].grown)
    found, state = backend.forward(TOKENS[:7], backend.new_state(), keep=[])
    assert found.shape[0] == 0
    found, state = backend.forward(TOKENS[7:], state, keep=[-1], donate=True)
    expected, other = plain.forward(TOKENS, plain.new_state(), keep=[-1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for name, array in backend.to_arrays(state).items():
        np.testing.assert_allclose(array, plain.to_arrays(other)[name], rtol=1e-4, atol=1e-4)
    steps, others = backend.steps(state), plain.steps(other)
    for token in (3, 4, 5):
        np.testing.assert_allclose(steps.step(token), others.step(token), rtol=1e-4, atol=1e-4)
    assert pages[0].grown == grown, "a chunk takes nothing that was not held before"
    steps.close()
    backend.close()
    assert heap.used_bytes, "a state that somebody holds outlives the backend"


def test_states_lie_where_the_one_before_the_last_did(
    pages: list[HostPages], tmp_path: Path
) -> None:
    backend, heap = backend_of(write_bundle(tmp_path / "bundle", TINY))
    weights = heap.used_bytes
    state, places = backend.new_state(), []
    for _ in range(6):
        _, state = backend.forward(TOKENS[:3], state, keep=[], donate=True)
        places.append([value.data_ptr() for value in state.values()])
    assert places[1] == places[3] == places[5]
    assert places[0] == places[2] == places[4]
    del state
    gc.collect()
    assert heap.used_bytes == weights
    backend.close()
    assert not heap.used_bytes
    assert not heap.held_bytes


def test_a_state_without_room_is_refused_and_the_one_before_is_whole(
    pages: list[HostPages], tmp_path: Path
) -> None:
    backend, heap = backend_of(write_bundle(tmp_path / "bundle", TINY), working_bytes=0)
    _, state = backend.forward(TOKENS[:3], backend.new_state(), keep=[])
    before = backend.to_arrays(state)
    heap.limit_bytes, taken = heap.held_bytes, []
    while (address := heap.take(64)) is not None:
        taken.append(address)
    with pytest.raises(BudgetExceeded, match="needs more memory than the budget leaves"):
        backend.forward(TOKENS[3:6], state, keep=[])
    for address in taken:
        heap.give_back(address)
    backend.release(None)
    for name, array in backend.to_arrays(state).items():
        np.testing.assert_array_equal(array, before[name])
    backend.forward(TOKENS[3:6], state, keep=[])
    backend.close()


def test_releasing_gives_back_what_is_neither_weights_nor_state(
    pages: list[HostPages], tmp_path: Path
) -> None:
    backend, heap = backend_of(write_bundle(tmp_path / "bundle", TINY))
    held = heap.held_bytes
    limit = OUTSIDE + ONNX_CUDA_BYTES + held
    backend.release(limit)
    assert held - WORKING - UNIT <= heap.held_bytes <= held - WORKING + UNIT
    assert heap.limit_bytes == held
    with pytest.raises(DoesNotFit, match="hold"):
        backend.release(OUTSIDE)
    backend.close()


def test_what_does_not_fit_is_told_and_freed(pages: list[HostPages], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", TINY)
    with pytest.raises(DoesNotFit, match=r"planned to take 160\.0 KiB beside the weights"):
        backend_of(bundle, limit_bytes=OUTSIDE + ONNX_CUDA_BYTES + 20 * UNIT)
    with pytest.raises(BudgetExceeded, match="needs more memory than the budget leaves"):
        backend_of(bundle, limit_bytes=OUTSIDE + ONNX_CUDA_BYTES + UNIT)
    with pytest.raises(DoesNotFit, match="Before the model"):
        backend_of(bundle, limit_bytes=OUTSIDE)


def test_a_backend_that_is_dropped_is_closed(pages: list[HostPages], tmp_path: Path) -> None:
    """Without the garbage collector: nothing that it made holds it."""
    backend, _ = backend_of(write_bundle(tmp_path / "bundle", TINY))
    steps = backend.steps(backend.new_state())
    steps.step(3)
    del backend, steps
    assert pages[0].closed
