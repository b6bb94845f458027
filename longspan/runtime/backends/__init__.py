"""The seam between the runtime and what computes: two small Protocols.

A backend turns tokens and a state into logits and the next state. Its state is opaque to the
rest of the runtime, and goes in and out as plain arrays, so a memory written on one backend
continues on another. It is never changed, unless its owner gives it away (`donate`): then it is of
no use after, even if the call fails, and a backend needs no memory for two. Token by token it goes
through `Steps`, which keep the state to themselves, so that a device may overwrite it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longspan.bundle import Bundle
from longspan.engines import Engine
from longspan.tensors import CacheDType

# From 1.29 on, onnxruntime keeps a device's id in the user's cache folder, and sends its makers
# names and hashes of models, and times. It looks here once, while it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Arrays = dict[str, NDArray[Any]]
State = dict[str, Any]


class Steps(Protocol):
    """One sequence, token by token, in buffers of its own."""

    def step(self, token: int) -> NDArray[np.float32]:
        """Read one token.

        Returns:
            Logits float32 [V] for the next one, valid until the next call.
        """

    def state(self) -> State:
        """A copy of the state after the last token, which `Backend.forward` takes."""

    def close(self) -> None:
        """Free the buffers; no other call may follow."""


class Backend(Protocol):
    """Runs one loaded model for one sequence at a time."""

    engine: Engine

    def new_state(self) -> State:
        """The state before the first token."""

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """Read `tokens` int64 [L] from `state`, L >= 1.

        Args:
            tokens: ids.
            state: where to begin; it stays as it was unless it is given away.
            keep: positions, negative ones from the end.
            donate: whether the state is given away.

        Returns:
            Logits float32 [n, V] at the n positions of `keep`, and the next state.
        """

    def steps(self, state: State, *, donate: bool = False) -> Steps:
        """Begin to step from `state`, which stays as it was unless it is given away.

        Several may be open at once: the first has the buffers that are fastest.

        Raises:
            BudgetExceeded: the device's allocator refused to pass its limit; the backend goes on.
        """

    def to_arrays(self, state: State) -> Arrays:
        """The state as arrays in host memory, by name; bfloat16 as uint16 with the same bits.

        A cache comes without the entries that are not in use, whatever its capacity.
        """

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """The state that `to_arrays` gave, on this backend's device and with its capacity.

        Raises:
            DoesNotFit: a cache has more entries in use than this backend has room for.
        """

    def release(self, memory_limit_bytes: int | None) -> None:
        """Give the device back what is neither weights nor a state that somebody holds.

        It is for the time after a refusal, and when the budget changes; no steps are open then.

        Args:
            memory_limit_bytes: what the whole process may hold from now on, as for `open_backend`.

        Raises:
            DoesNotFit: what is held before any model passes the limit.
        """

    def close(self) -> None:
        """Free the model; the backend cannot be used after."""


def open_backend(
    bundle: Bundle,
    *,
    engine: Engine,
    memory_limit_bytes: int | None,
    threads: int | None = None,
    capacity: int = 0,
    working_bytes: int = 0,
    step_graph: bool = False,
    cache_dtype: CacheDType | None = None,
    streamed_layers: Sequence[int] = (),
    expert_slots: int = 0,
) -> Backend:
    """Load the model of `bundle` on `engine`.

    Args:
        bundle: as `longspan.bundle.open_bundle` gives it.
        engine: as `longspan.runtime.backends.choice.choose_engine` gives it.
        memory_limit_bytes: what the whole process may hold on a CUDA device; the allocators are
            capped so. CPU engines have no allocator to cap: their plan keeps them inside. None
            for no cap.
        threads: CPU threads of one operation; None for the physical cores this process may use.
        capacity: entries of each cache; a state of fixed size needs none. A call may not bring
            more tokens than there is room for.
        working_bytes: onnx-cuda: what its heap holds from the start for chunks and states
            (`Plan.working_bytes`).
        step_graph: CUDA: whether steps may be recorded once and replayed, which takes memory
            (`Plan.step_graph`).
        cache_dtype: what the device keeps keys and values in, of torch's engines alone; None for
            the manifest's dtype.
        streamed_layers: torch-cuda: layers whose weights wait in pinned host memory
            (`Plan.streamed_layers`).
        expert_slots: torch-cuda: experts that the device holds at once; 0 for all
            (`Plan.expert_slots`).

    Raises:
        BadBundle: weights or graph cannot be loaded.
        BadInput: a graph was to keep keys and values in another dtype than it was exported with.
        DoesNotFit: the limit is smaller than what the libraries hold before any model.
        MissingExtra: the engine needs torch, and torch is not installed.
    """
    if engine in ("torch-cpu", "torch-cuda"):
        from longspan.runtime.backends.torch import TorchBackend

        return TorchBackend(
            bundle,
            engine=engine,
            memory_limit_bytes=memory_limit_bytes,
            threads=threads,
            capacity=capacity,
            step_graph=step_graph,
            cache_dtype=cache_dtype,
            streamed_layers=streamed_layers,
            expert_slots=expert_slots,
        )
    from longspan.runtime.backends.onnx import OnnxBackend

    return OnnxBackend(
        bundle,
        engine=engine,
        memory_limit_bytes=memory_limit_bytes,
        threads=threads,
        capacity=capacity,
        working_bytes=working_bytes,
        step_graph=step_graph,
        cache_dtype=cache_dtype,
    )
