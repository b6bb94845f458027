"""The ONNX Runtime backend, on the CPU or CUDA; it needs no torch.

State tensors are OrtValues that ONNX Runtime itself allocates on the device, one call's outputs
being the next call's inputs: nothing is copied, and nothing that was given out is written again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from longspan.bundle import Bundle
from longspan.engines import Engine, device_of
from longspan.errors import BudgetExceeded
from longspan.runtime.backends import Arrays, State, Steps
from longspan.runtime.backends.caches import padded
from longspan.runtime.backends.choice import find_installed
from longspan.runtime.backends.forward_steps import ForwardSteps
from longspan.runtime.backends.onnx_session import ORT_ERRORS, cpu_session, cuda_session
from longspan.runtime.nvidia import copy_to_host
from longspan.tensors import DType, TensorSpec

# onnx.TensorProto's numbers.
_ELEMENT_TYPES: dict[DType, int] = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}
_NUMPY_DTYPES: dict[DType, type[np.generic]] = {
    "float32": np.float32,
    "int64": np.int64,
    "float16": np.float16,
    "bfloat16": np.uint16,
}
# The matrices: nearly all of the bytes. The session loads the rest by itself.
SHARED_WEIGHTS = ("_proj.weight", "embedding", "head")
# How onnxruntime's allocators say that a limit was met.
_OUT_OF_MEMORY = ("Available memory of", "Failed to allocate memory", "bad allocation")


class OnnxBackend:
    """A session of ONNX Runtime over the bundle's graph.

    Args:
        bundle: the model.
        engine: ``"onnx-cpu"`` or ``"onnx-cuda"``.
        memory_limit_bytes: CUDA: what the whole process may hold on the device; None for no cap.
        threads: CPU: threads of one operation; None for the physical cores.
        capacity: entries of each cache.

    Raises:
        BadBundle: onnxruntime refuses the graph.
        BadInput: onnxruntime cannot use CUDA here.
        DoesNotFit: what is held before the model passes the limit.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: Engine,
        memory_limit_bytes: int | None,
        threads: int | None,
        capacity: int,
        step_graph: bool = False,
    ) -> None:
        self.engine = engine
        self._device = device_of(engine)
        self._specs = bundle.manifest.state_at(capacity)
        # The session points to these values and does not own them: they live as long as it does.
        self._weights = _torch_weights(bundle) if self._device == "cuda" else None
        self._session: Any = (
            cuda_session(bundle, memory_limit_bytes=memory_limit_bytes, weights=self._weights)
            if self._device == "cuda"
            else cpu_session(bundle, threads=threads)
        )

    def new_state(self) -> State:
        """Zeros."""
        return self.from_arrays(
            {spec.name: np.zeros(spec.shape, _NUMPY_DTYPES[spec.dtype]) for spec in self._specs}
        )

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int]
    ) -> tuple[NDArray[np.float32], State]:
        """See `longspan.runtime.backends.Backend.forward`.

        Raises:
            BudgetExceeded: the device's allocator refused to pass its limit.
        """
        assert self._session is not None, "the backend is closed"
        binding = self._session.io_binding()
        binding.bind_cpu_input("tokens", np.ascontiguousarray(tokens, np.int64)[None])
        # Bound by value: `bind_cpu_input` refuses inputs that have a default, as `keep` has.
        kept = ort.OrtValue.ortvalue_from_numpy(np.array(keep, np.int64))
        binding.bind_ortvalue_input("keep", kept)
        binding.bind_output("logits", "cpu")
        for spec in self._specs:
            binding.bind_ortvalue_input(f"past.{spec.name}", state[spec.name])
            binding.bind_output(f"present.{spec.name}", self._device)
        try:
            self._session.run_with_iobinding(binding)
        except ORT_ERRORS as error:
            if any(sign in str(error) for sign in _OUT_OF_MEMORY):
                raise BudgetExceeded(
                    f"A chunk of {len(tokens)} tokens needs more memory than the budget leaves: "
                    f"{error}. Give a larger --budget."
                ) from error
            raise
        logits, *after = binding.get_outputs()
        # The outputs keep the binding, and the binding would keep the state before.
        binding.clear_binding_inputs()
        result: NDArray[np.float32] = logits.numpy()[0]
        names = (spec.name for spec in self._specs)
        return result, dict(zip(names, after, strict=True))

    def steps(self, state: State) -> Steps:
        """See `longspan.runtime.backends.Backend.steps`."""
        return ForwardSteps(self, state)

    def to_arrays(self, state: State) -> Arrays:
        """Copies in host memory; of caches, the entries in use."""
        fixed = (spec for spec in self._specs if spec.counter is None)
        arrays = {spec.name: _to_array(state[spec.name], spec) for spec in fixed}
        for spec in self._specs:
            if spec.counter is not None:
                used = spec.with_capacity(int(arrays[spec.counter][0]))
                arrays[spec.name] = _to_array(state[spec.name], used)
        return {spec.name: arrays[spec.name] for spec in self._specs}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Copies in host memory; the first call that reads them takes them to the device.

        Raises:
            DoesNotFit: a cache has more entries in use than there is room for.
        """
        return {spec.name: _to_value(padded(arrays, spec), spec) for spec in self._specs}

    def close(self) -> None:
        """Free the session and what it loaded."""
        self._session = None
        self._weights = None


def _to_value(array: NDArray[Any], spec: TensorSpec) -> ort.OrtValue:
    owned = np.array(array, _NUMPY_DTYPES[spec.dtype], order="C")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(owned, _ELEMENT_TYPES[spec.dtype])


def _to_array(value: ort.OrtValue, spec: TensorSpec) -> NDArray[Any]:
    """Read the bytes: OrtValue.numpy() knows no bfloat16. Of a cache, the first entries."""
    array = np.empty(spec.shape, _NUMPY_DTYPES[spec.dtype])
    wanted = spec if spec.counter is None else spec.with_capacity(value.shape()[1])
    assert tuple(value.shape()) == wanted.shape, f"{spec.name} has the shape {value.shape()}"
    if not array.size:
        return array
    if value.device_name() == "cpu":
        ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    else:
        copy_to_host(value.data_ptr(), array.ctypes.data, array.nbytes)
    return array


def _torch_weights(bundle: Bundle) -> dict[str, Any] | None:
    """The matrices as torch's CUDA tensors, used in place by the session; None without torch."""
    if not find_installed().torch_cuda:
        return None
    from safetensors import safe_open

    with safe_open(str(bundle.weights_path), framework="pt", device="cuda:0") as file:
        return {
            name: ort.OrtValue.from_dlpack(file.get_tensor(name).__dlpack__())
            for name in file.keys()  # noqa: SIM118
            if name.endswith(SHARED_WEIGHTS)
        }
