"""ONNX Runtime's steps: a token, its logits, and the state twice, all at fixed addresses.

A step reads one of the two states and writes the other, and the next goes back: nothing is copied
between them, and on CUDA each direction may be recorded once as a CUDA graph. ONNX Runtime records
at the third run over a binding, and makes the two before itself, inside the first call; they write
what they do not read, so a run more changes nothing.

A binding is kept, but for a session on CUDA that computes lengths and counters on the host: it
copies what they read there when it is bound, not when it runs.

    steps = OnnxSteps(StepBuffers(session, specs, vocab_size=4096, device="cpu"), state)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from longspan.engines import Device
from longspan.runtime.backends import State
from longspan.runtime.backends.onnx_values import read_into, run_bound, to_array, to_value
from longspan.tensors import TensorSpec

# The run option that names a recorded graph, and its value for runs that shall not be recorded.
_GRAPH_ID, _NOT_RECORDED = "gpu_graph_id", -1


class StepBuffers:
    """A session's inputs and outputs for one sequence at a time.

    Args:
        session: over a graph of the bundle.
        specs: the state.
        new_values: makes room for one.
        vocab_size: V.
        device: where the session computes.
        recorded: whether the session was made to record CUDA graphs.
    """

    def __init__(
        self,
        session: Any,
        specs: Sequence[TensorSpec],
        new_values: Callable[[], State],
        *,
        vocab_size: int,
        device: Device,
        recorded: bool = False,
    ) -> None:
        self.specs = tuple(specs)
        self._new_values = new_values
        self._session, self._device, self._recorded = session, device, recorded
        self._keeps_bindings = recorded or device == "cpu"
        self._token = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 1), np.int64), device, 0)
        self._logits: ort.OrtValue | None = None
        self._host_logits = np.empty(vocab_size, np.float32)
        self._states: list[State | None] = [None, None]
        self._bindings: list[Any] = [None, None]

    def read(self, token: int, *, into: int, start: State | None) -> NDArray[np.float32]:
        """Read a token from `start`, or from the other state, and write the state `into`, 0 or 1.

        Returns:
            Logits float32 [V], which the next call overwrites.

        Raises:
            BudgetExceeded: the device's allocator refused to pass its limit.
        """
        self._token.update_inplace(np.array([[token]], np.int64))
        if start is not None or self._states[into] is None or not self._keeps_bindings:
            self._read_once(self._other(into) if start is None else start, into)
        else:
            if self._bindings[into] is None:
                self._bindings[into] = self._bound(self._other(into), into)
            self._run(self._bindings[into], graph=1 + into)
        assert self._logits is not None, "a run gives logits"
        read_into(self._host_logits, self._logits)
        return self._host_logits

    def copy_of(self, which: int) -> State:
        """A copy of one of the states, in host memory."""
        state = self._states[which]
        assert state is not None, "nothing was written there yet"
        return {spec.name: to_value(to_array(state[spec.name], spec), spec) for spec in self.specs}

    def _other(self, which: int) -> State:
        state = self._states[1 - which]
        assert state is not None, "the first step writes it"
        return state

    def _read_once(self, source: State, into: int) -> None:
        """A run that is not recorded; it allocates the logits where they are not there yet."""
        if self._states[into] is None:
            self._states[into] = self._new_values()
        binding = self._bound(source, into)
        self._run(binding, graph=_NOT_RECORDED)
        self._logits = binding.get_outputs()[0]
        # The output keeps the binding, and the binding would keep the state before.
        binding.clear_binding_inputs()

    def _bound(self, source: State, into: int) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("tokens", self._token)
        if self._logits is None:
            binding.bind_output("logits", self._device)
        else:
            binding.bind_ortvalue_output("logits", self._logits)
        target = self._states[into]
        assert target is not None, "there is room for what is written"
        for spec in self.specs:
            binding.bind_ortvalue_input(f"past.{spec.name}", source[spec.name])
            binding.bind_ortvalue_output(f"present.{spec.name}", target[spec.name])
        return binding

    def _run(self, binding: Any, *, graph: int) -> None:
        options = ort.RunOptions()
        if self._recorded:
            options.add_run_config_entry(_GRAPH_ID, str(graph))
        run_bound(self._session, binding, tokens=1, options=options)


class OnnxSteps:
    """Steps over `StepBuffers`; see `longspan.runtime.backends.Steps`.

    Args:
        buffers: what no other steps use before these are closed.
        state: to begin from; the first step reads it where it lies.
        on_close: called once.
    """

    def __init__(
        self, buffers: StepBuffers, state: State, on_close: Callable[[], None] | None = None
    ) -> None:
        self._buffers: StepBuffers | None = buffers
        self._start: State | None = state
        self._on_close = on_close
        self._tokens = 0

    def step(self, token: int) -> NDArray[np.float32]:
        """See `Steps.step`.

        Raises:
            BudgetExceeded: the device's allocator refused to pass its limit.
        """
        assert self._buffers is not None, "the steps are closed"
        logits = self._buffers.read(token, into=self._tokens % 2, start=self._start)
        self._start = None
        self._tokens += 1
        return logits

    def state(self) -> State:
        """See `Steps.state`."""
        assert self._buffers is not None, "the steps are closed"
        if self._start is not None:
            return self._start
        return self._buffers.copy_of((self._tokens - 1) % 2)

    def close(self) -> None:
        """Give the buffers back."""
        if self._buffers is not None and self._on_close is not None:
            self._on_close()
        self._buffers = self._start = None
