"""Sessions of ONNX Runtime on CUDA allocate through their own heap, and nobody else does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import pytest
from host_pages import HostPages
from stand_in import TINY, write_bundle

from longspan.bundle import Bundle
from longspan.errors import BadBundle
from longspan.runtime.backends import onnx_session as module
from longspan.runtime.backends import open_backend
from longspan.runtime.backends.onnx import OnnxBackend
from longspan.runtime.backends.onnx_heap import SessionMemory
from longspan.runtime.device_heap import DeviceHeap
from longspan.runtime.runtime import load

CUDA = "CUDAExecutionProvider"
TOKENS = np.random.default_rng(4).integers(0, TINY.vocab_size, 300)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("sessions") / "tiny")


class Made:
    """In place of an InferenceSession: keeps what each was given, and may refuse callbacks."""

    options: ClassVar[list[dict[str, Any]]] = []
    refuses: ClassVar[bool] = False

    def __init__(self, _model: Any, _options: Any, *, providers: list[Any]) -> None:
        ((_, given),) = providers
        self.options.append(given)
        if self.refuses and "gpu_external_alloc" in given:
            raise module.ort_errors.InvalidGraph("no graph")

    def get_providers(self) -> list[str]:
        return [CUDA]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return []

    def run(self, _outputs: None, _feeds: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("refuses", [False, True])
def test_callbacks_are_not_left_for_other_sessions(
    refuses: bool, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime passes a session's callbacks on to every later one that has no options."""
    monkeypatch.setattr(Made, "refuses", refuses)
    monkeypatch.setattr(module.ort, "InferenceSession", Made)
    monkeypatch.setattr(module, "preload_cuda_libraries", lambda: None)
    monkeypatch.setattr(Made, "options", [])
    module.warm_up_onnx("cuda")
    memory = SessionMemory(DeviceHeap(HostPages(2**20), limit_bytes=None))
    with pytest.raises(BadBundle, match="no graph") if refuses else nullcontext():
        module.cuda_session(bundle, memory=memory, weights={})
    warm_up, session, last = Made.options
    assert memory.options.items() <= session.items()
    for given in (warm_up, last):
        assert given
        assert not memory.options.keys() & given.keys()


@pytest.mark.gpu
@pytest.mark.onnx_cuda
def test_loading_again_in_a_process(bundle: Bundle) -> None:
    found = []
    for _ in range(3):
        with load(bundle, budget="4GiB", device="cuda", backend="onnx") as runtime:
            memory = runtime.read_tokens([TOKENS])
            found.append(memory.last_logits)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.gpu
@pytest.mark.onnx_cuda
def test_an_applications_session_does_not_allocate_in_the_heap(
    bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "product.onnx"
    path.write_bytes(module._MATMUL_64)
    x = np.ones((64, 64), np.float32)
    backend = open_backend(bundle, engine="onnx-cuda", memory_limit_bytes=None, capacity=0)
    assert isinstance(backend, OnnxBackend)
    assert backend._memory is not None
    heap = backend._memory.heap
    used = heap.used_bytes
    for close in (False, True):
        if close:
            backend.close()
        theirs: Any = ort.InferenceSession(path, providers=[CUDA])
        assert theirs.get_providers()[0] == CUDA
        np.testing.assert_array_equal(theirs.run(None, {"x": x})[0], x @ x)
        assert close or heap.used_bytes == used
