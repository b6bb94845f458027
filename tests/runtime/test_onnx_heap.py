"""Tensors of a heap as ONNX Runtime's values: weights from a file, and states."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from host_pages import HostPages
from stand_in import TINY, write_bundle

from longspan.errors import BudgetExceeded
from longspan.runtime.backends.onnx_heap import SessionMemory
from longspan.runtime.backends.onnx_values import to_array
from longspan.runtime.device_heap import DeviceHeap
from longspan.tensors import TensorSpec
from longspan.weights_file import stored_tensors

ROOM = 2**20
SPECS = (
    TensorSpec(name="wide", shape=(1, 3, 4), dtype="float32"),
    TensorSpec(name="narrow", shape=(1, 5), dtype="bfloat16"),
    TensorSpec(name="none", shape=(1, 0, 4), dtype="float16"),
    TensorSpec(name="counter", shape=(1,), dtype="int64"),
)


def memory_of(limit_bytes: int | None = None) -> tuple[SessionMemory, DeviceHeap, HostPages]:
    """A heap in host memory."""
    pages = HostPages(ROOM)
    heap = DeviceHeap(pages, limit_bytes=limit_bytes)

    def copy(source: int, target: int, count: int) -> None:
        ctypes.memmove(target, source, count)

    return SessionMemory(heap, device="cpu", copy=copy), heap, pages


def test_values_lie_in_the_heap_until_nobody_needs_them() -> None:
    memory, heap, pages = memory_of()
    values = memory.empty(SPECS)
    assert {name: tuple(value.shape()) for name, value in values.items()} == {
        spec.name: spec.shape for spec in SPECS
    }
    assert [value.element_type() for value in values.values()] == [1, 16, 10, 7]
    assert pages.base <= values["wide"].data_ptr() < pages.base + heap.held_bytes
    ctypes.memmove(values["wide"].data_ptr(), np.arange(12, dtype=np.float32).ctypes.data, 48)
    np.testing.assert_array_equal(to_array(values["wide"], SPECS[0]).ravel(), np.arange(12))
    kept = values["narrow"]
    memory.close()
    del values
    gc.collect()
    assert heap.used_bytes
    assert not pages.closed
    del kept
    gc.collect()
    assert pages.closed


def test_a_session_reads_and_writes_them(tmp_path: Path) -> None:
    """Weights of a bundle, used in place, give what the session's own do."""
    bundle = write_bundle(tmp_path / "tiny", TINY)
    memory, heap, _ = memory_of()
    weights = memory.weights(bundle.weights_path, lambda name: name.endswith("_proj.weight"))
    stored = {each.name: each for each in stored_tensors(bundle.weights_path)}
    assert weights.keys() == {name for name in stored if name.endswith("_proj.weight")}
    assert heap.used_bytes >= sum(stored[name].nbytes for name in weights)
    found = []
    for given in ({}, weights):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        for name, value in given.items():
            options.add_initializer(name, value)
        session = ort.InferenceSession(str(bundle.graph_path("cuda")), options)
        state = {
            f"past.{spec.name}": np.zeros(spec.shape, spec.dtype) for spec in bundle.manifest.state
        }
        fed = {"tokens": np.arange(9)[None], "keep": np.array([8]), **state}
        found.append(session.run(["logits"], fed)[0])
    np.testing.assert_array_equal(*found)


def test_a_heap_without_room_is_a_budget_exceeded() -> None:
    memory, heap, _ = memory_of(limit_bytes=0)
    with pytest.raises(BudgetExceeded) as caught:
        memory.empty(SPECS)
    assert str(caught.value) == (
        "A tensor of 48 B needs more memory than the budget leaves. Give a larger --budget."
    )
    assert not heap.used_bytes


def test_a_session_is_told_where_to_allocate() -> None:
    memory, _, _ = memory_of()
    assert memory.options.keys() == {"gpu_external_alloc", "gpu_external_free"}
    take = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)
    give_back = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    address = take(int(memory.options["gpu_external_alloc"]))(1000)
    assert memory.heap.used_bytes == 1024
    free = give_back(int(memory.options["gpu_external_free"]))
    free(address)
    assert not memory.heap.used_bytes
    free(None)  # as a tensor without numbers is


# What `sys` has is freed last, when modules are gone: a value, and what calls as sessions do.
LEFT_OPEN = """
import ctypes, functools, sys
sys.path.append(sys.argv[1])
from longspan.runtime.backends.onnx_heap import SessionMemory
from longspan.runtime.device_heap import DeviceHeap
from longspan.tensors import TensorSpec
from host_pages import HostPages

heap = DeviceHeap(HostPages(2**20), limit_bytes=None)
memory = SessionMemory(heap, device="cpu")
take = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(int(memory.options["gpu_external_alloc"]))
free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(int(memory.options["gpu_external_free"]))
session = type("Session", (), {"__del__": functools.partial(free, take(1000))})
sys.left_open = [session(), memory.empty([TensorSpec(name="x", shape=(3, 4), dtype="float32")])]
print(heap.used_bytes)
"""


def test_a_process_may_end_with_values_and_sessions_open() -> None:
    folder = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, folder], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1280\n", "")
