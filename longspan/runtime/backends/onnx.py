"""The ONNX Runtime backend, on the CPU or CUDA; it needs no torch.

State tensors are OrtValues on the device, one call's outputs being the next call's inputs: nothing
is copied, and nothing that was given out is written again. On CPUs they lie outside ONNX Runtime's
arena, which would keep the room of the largest ones for ever; on CUDA in a heap, as weights do and
what a chunk makes, before whose tensors they are allocated: none lies among them.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from longspan.bundle import Bundle
from longspan.engines import Engine, device_of
from longspan.errors import BadInput, DoesNotFit
from longspan.runtime.backends import Arrays, State, Steps
from longspan.runtime.backends.caches import FIXED_CACHES, padded
from longspan.runtime.backends.onnx_heap import SessionMemory
from longspan.runtime.backends.onnx_session import (
    cpu_session,
    cuda_session,
    heap_limit,
    step_session,
    warm_up_onnx,
)
from longspan.runtime.backends.onnx_steps import OnnxSteps, StepBuffers
from longspan.runtime.backends.onnx_values import (
    NUMPY_DTYPES,
    empty_values,
    run_bound,
    to_array,
    to_value,
)
from longspan.runtime.device_heap import DeviceHeap
from longspan.runtime.device_memory import memory_now
from longspan.runtime.device_pages import DevicePages
from longspan.runtime.host_memory import trim
from longspan.runtime.plan_graph import onnx_graph_arena_bytes, onnx_graph_bytes
from longspan.runtime.plan_items import ONNX_CUDA_BYTES
from longspan.sizes import format_bytes
from longspan.tensors import CacheDType

# The matrices: nearly all of the bytes. The session loads the rest by itself.
SHARED_WEIGHTS = ("_proj.weight", "_proj.scales", "embedding", "head", "_scales")


class OnnxBackend:
    """A session of ONNX Runtime over the bundle's graph.

    Args:
        bundle: the model.
        engine: ``"onnx-cpu"`` or ``"onnx-cuda"``.
        memory_limit_bytes: CUDA: what the whole process may hold on the device; None for no cap.
        working_bytes: CUDA: the room of a chunk, its states and logits, held from now on.
        threads: CPU: threads of one operation; None for the physical cores.
        capacity: entries of each cache.
        step_graph: CUDA: whether steps are recorded, by a second session over the same weights.
        cache_dtype: None; torch's backend has others.

    Raises:
        BadBundle: onnxruntime refuses the graph.
        BadInput: onnxruntime cannot use CUDA here, or `cache_dtype` is not None.
        BudgetExceeded: the weights pass the limit.
        DoesNotFit: what is held before the model passes the limit, or the device has no more room.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: Engine,
        memory_limit_bytes: int | None,
        threads: int | None,
        capacity: int,
        working_bytes: int = 0,
        step_graph: bool = False,
        cache_dtype: CacheDType | None = None,
    ) -> None:
        if cache_dtype is not None:
            raise BadInput(
                f"Keys and values in {cache_dtype} were asked for with {engine}: "
                f"{FIXED_CACHES}. Choose --backend torch, or the graph's own dtype."
            )
        self.engine = engine
        self._device = device_of(engine)
        self._bundle, self._limit_bytes = bundle, memory_limit_bytes
        self._specs = bundle.manifest.state_at(capacity)
        self._threads = threads
        self._step_graph = step_graph and self._device == "cuda"
        # Made by the first steps; steps that are open beside others have buffers of their own.
        self._recorded: StepBuffers | None = None
        self._recorded_in_use = False
        self._session: Any = None
        self._memory: SessionMemory | None = None
        # A session points to its weights and does not own them: they live as long as it does.
        self._weights: dict[str, Any] = {}
        with ExitStack() as stack:
            stack.callback(self.close)
            if self._device == "cuda":
                self._fill_memory()
            make = empty_values if self._memory is None else self._memory.empty
            # Room for a state that a run writes. What has it does not hold this backend.
            self._new_state_values = partial(make, self._specs)
            self._session = self._open()
            self._hold(working_bytes)
            stack.pop_all()

    def _fill_memory(self) -> None:
        """Make a heap, in what the limit leaves beside what lies elsewhere, with the matrices."""
        warm_up_onnx("cuda")
        self._outside_bytes = memory_now("cuda").bytes + ONNX_CUDA_BYTES
        limit = heap_limit(self._limit_bytes, self._outside_bytes)
        self._memory = SessionMemory(DeviceHeap(DevicePages(), limit_bytes=limit))
        # Also for who drops a backend without closing it; as a process ends the driver frees all.
        self._close_memory = weakref.finalize(self, self._memory.close)
        self._close_memory.atexit = False
        self._weights = self._memory.weights(
            self._bundle.weights_path, lambda name: name.endswith(SHARED_WEIGHTS)
        )

    def _hold(self, size_bytes: int) -> None:
        if self._memory is not None and not self._memory.heap.hold(size_bytes):
            raise DoesNotFit(
                f"Chunks and states were planned to take {format_bytes(size_bytes)} beside the "
                "weights, and the device or the budget leaves less. Free memory of the device, or "
                "give a larger --budget."
            )

    def _open(self) -> Any:
        if self._memory is None:
            return cpu_session(self._bundle, threads=self._threads)
        return cuda_session(self._bundle, memory=self._memory, weights=self._weights)

    def new_state(self) -> State:
        """Zeros."""
        return self.from_arrays(
            {spec.name: np.zeros(spec.shape, NUMPY_DTYPES[spec.dtype]) for spec in self._specs}
        )

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """See `longspan.runtime.backends.Backend.forward`.

        ONNX Runtime holds what a run reads until it ends, so there are two states meanwhile.

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
        # What lies in host memory is copied now, before there is room for what comes next.
        for spec in self._specs:
            binding.bind_ortvalue_input(f"past.{spec.name}", state[spec.name])
        following = self._new_state_values()
        for spec in self._specs:
            binding.bind_ortvalue_output(f"present.{spec.name}", following[spec.name])
        run_bound(self._session, binding, tokens=len(tokens))
        logits = binding.get_outputs()[0]
        # The output keeps the binding, and the binding would keep the state before.
        binding.clear_binding_inputs()
        if donate:
            state.clear()
        # A copy: whoever keeps a view of an output keeps the session's whole arena.
        result: NDArray[np.float32] = logits.numpy()[0].copy()
        return result, following

    def steps(self, state: State, *, donate: bool = False) -> Steps:
        """See `longspan.runtime.backends.Backend.steps`; the first step frees what it was given.

        Raises:
            BadBundle: onnxruntime refuses to record the graph.
            BudgetExceeded: the limit leaves no room to record.
        """
        assert self._session is not None, "the backend is closed"
        if not self._step_graph or self._recorded_in_use:
            return OnnxSteps(self._step_buffers(self._session), state)
        if self._recorded is None:
            session = step_session(
                self._bundle, memory_limit_bytes=self._limit_bytes, weights=self._weights
            )
            self._leave_room_to_record()
            self._recorded = self._step_buffers(session, recorded=True)
        self._recorded_in_use = True
        return OnnxSteps(self._recorded, state, on_close=self._give_back)

    def _step_buffers(self, session: Any, *, recorded: bool = False) -> StepBuffers:
        return StepBuffers(
            session,
            self._specs,
            self._new_state_values,
            vocab_size=self._bundle.manifest.config.vocab_size,
            device=self._device,
            recorded=recorded,
        )

    def _leave_room_to_record(self) -> None:
        """Keep the heap from growing into what the recorded step takes beside it."""
        assert self._memory is not None, "steps are recorded on CUDA alone"
        if self._memory.heap.limit_bytes is not None:
            manifest = self._bundle.manifest
            taken = onnx_graph_bytes(manifest) + onnx_graph_arena_bytes(manifest)
            self._memory.heap.limit_bytes -= taken

    def _give_back(self) -> None:
        self._recorded_in_use = False

    def to_arrays(self, state: State) -> Arrays:
        """Copies in host memory; of caches, the entries in use."""
        fixed = (spec for spec in self._specs if spec.counter is None)
        arrays = {spec.name: to_array(state[spec.name], spec) for spec in fixed}
        for spec in self._specs:
            if spec.counter is not None:
                used = spec.with_capacity(int(arrays[spec.counter][0]))
                arrays[spec.name] = to_array(state[spec.name], used)
        return {spec.name: arrays[spec.name] for spec in self._specs}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Copies in host memory; the first call that reads them takes them to the device.

        Raises:
            DoesNotFit: a cache has more entries in use than there is room for.
        """
        return {spec.name: to_value(padded(arrays, spec), spec) for spec in self._specs}

    def release(self, memory_limit_bytes: int | None) -> None:
        """See `Backend.release`. On CPUs a session is opened anew: its arena keeps what it took.

        Raises:
            DoesNotFit: what is held before the model passes the limit.
        """
        self._recorded = None
        self._limit_bytes = memory_limit_bytes
        if self._memory is None:
            self._session = None
            trim()
            self._session = self._open()
        else:
            self._memory.heap.trim()
            self._memory.heap.limit_bytes = heap_limit(memory_limit_bytes, self._outside_bytes)

    def close(self) -> None:
        """Free the sessions and what they loaded."""
        self._recorded = None
        self._session = None
        self._weights = {}
        if self._memory is not None:
            self._close_memory()
        trim()
