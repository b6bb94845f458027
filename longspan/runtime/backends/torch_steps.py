"""Steps of the torch backend on CUDA: buffers that each step overwrites, and a graph that runs it.

A step is some ten kernels a layer. Launched one by one from Python they take longer than the GPU
needs to read the weights, so a step is recorded once, as a CUDA graph, and replayed. A graph has
its addresses in it: the token, the state and the logits lie in buffers that stay where they are.
The device reads the token where it lies in host memory, and leaves the logits there: a step is one
call to the driver and one wait, and no copy.

    stepper = Stepper(decoder, graph=True, held=new_state())
    steps = stepper.open(state)
    logits = steps.step(token)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from longspan.errors import BudgetExceeded
from longspan.kernels.donation import states_donated
from longspan.kernels.overlap import launches_overlap
from longspan.models.decoder import Decoder
from longspan.runtime.backends import State
from longspan.runtime.backends.pinned import HostBuffer

# Bytes before the logits, which the device writes 16 at a time.
LOGITS_AT = 64


class StepBuffers:
    """The state of one sequence and, in host memory, its token and logits float32 [V].

    Args:
        decoder: computes.
        state: as wide as the buffers.
        donate: whether its tensors become the buffers, which begin as zeros otherwise.
    """

    def __init__(self, decoder: Decoder, state: State, *, donate: bool = False) -> None:
        device = decoder.embedding.device
        self._decoder = decoder
        self.state = (
            state if donate else {name: torch.zeros_like(each) for name, each in state.items()}
        )
        shared = HostBuffer(LOGITS_AT + decoder.config.vocab_size * 4, device)
        there = shared.on_device() if device.type == "cuda" else shared.host
        # As NumPy has them: each of torch's operations on them takes longer than a small launch.
        token, logits = _token_and_logits(shared.host)
        self._token: NDArray[np.int64] = token.numpy()
        self._logits: NDArray[np.float32] = logits[0, 0].numpy()
        # What is recorded reads it before there is any.
        self.put(0)
        self._token_there, self._logits_there = _token_and_logits(there)

    def fill_(self, state: State) -> None:
        """Take over the values of a state."""
        _copy_(list(self.state.values()), [state[name] for name in self.state])

    def put(self, token: int) -> None:
        """Let `token` be the one that is read next."""
        self._token[0, 0] = token

    @torch.inference_mode()
    def advance_no_sync_(self) -> None:
        """Read the token; its logits and the next state will be in the buffers."""
        after = self._read(self.state, donate=False)
        moved = [name for name, each in after.items() if each is not self.state[name]]
        _copy_([self.state[name] for name in moved], [after[name] for name in moved])

    @torch.inference_mode()
    def advance_no_sync(self) -> None:
        """The same, where buffers may move: what a layer cannot overwrite is freed at once."""
        self.state = self._read(self.state, donate=True)

    def wait(self) -> NDArray[np.float32]:
        """The logits, once they are there; the same memory each time."""
        device = self._decoder.embedding.device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        return self._logits

    def _read(self, state: State, *, donate: bool) -> State:
        """Fill the logits, and give the next state."""
        with states_donated():
            _, after = self._decoder(
                self._token_there, None, state, donate=donate, logits=self._logits_there
            )
        next_state: State = after
        return next_state


def _token_and_logits(memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A token int64 [1, 1] and logits float32 [1, 1, V] in uint8 [n] memory."""
    token = memory[:8].view(torch.int64)
    return token.view(1, 1), memory[LOGITS_AT:].view(torch.float32).view(1, 1, -1)


class TorchSteps:
    """See `longspan.runtime.backends.Steps`.

    Args:
        buffers: hold the state to begin from.
        run: reads their token into their logits, without waiting for it.
        on_close: called once.
    """

    def __init__(
        self, buffers: StepBuffers, run: Callable[[], None], on_close: Callable[[], None]
    ) -> None:
        self._open: tuple[StepBuffers, Callable[[], None]] | None = buffers, run
        self._on_close = on_close

    def step(self, token: int) -> NDArray[np.float32]:
        """See `Steps.step`.

        Raises:
            BudgetExceeded: torch's allocator refused to pass its cap.
        """
        assert self._open is not None, "the steps are closed"
        buffers, run = self._open
        buffers.put(token)
        try:
            run()
        except torch.OutOfMemoryError as error:
            raise exceeded("A step", error) from error
        return buffers.wait()

    @torch.inference_mode()
    def state(self) -> State:
        """See `Steps.state`."""
        assert self._open is not None, "the steps are closed"
        return {name: each.clone() for name, each in self._open[0].state.items()}

    def close(self) -> None:
        """See `Steps.close`; a second call does nothing."""
        if self._open is not None:
            self._open = None
            self._on_close()


class StepGraph:
    """A step recorded as a CUDA graph over buffers of its own.

    Args:
        decoder: on CUDA, with ops that never wait for the host.
        buffers: their state is as wide as what they are filled with; a cache has room for an entry.
    """

    @torch.inference_mode()
    def __init__(self, decoder: Decoder, buffers: StepBuffers) -> None:
        device = decoder.embedding.device
        self.buffers = buffers
        self._graph = torch.cuda.CUDAGraph()
        here, side = torch.cuda.current_stream(device), _capture_stream(device)
        # Torch's own context leaves its stream current where the end of a recording fails. A step
        # begins with the embedding, a launch that overlaps nothing: the state before is there.
        with torch.cuda.stream(here), launches_overlap():
            # What first calls do once, compiling kernels and making workspaces, no graph can hold.
            side.wait_stream(here)
            try:
                with torch.cuda.stream(side):
                    self.buffers.advance_no_sync_()
            finally:
                here.wait_stream(side)
            # The threads that watch memory may call the driver meanwhile.
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                self.buffers.advance_no_sync_()

    def replay_no_sync_(self) -> None:
        """Run the step over the buffers."""
        self._graph.replay()


class Stepper:
    """Opens steps of a decoder on CUDA; one of them at a time has the graph.

    Args:
        decoder: computes.
        graph: whether a step is recorded; otherwise its kernels are launched one by one.
        held: a state whose tensors the graph takes for good, and which is therefore to be made
            before the first chunk: made later it would lie among the chunk's memory, and the next
            chunk's tensors would not fit around it. None where the graph goes when its steps are
            closed, as the next chunk needs the memory of its caches.
    """

    def __init__(self, decoder: Decoder, *, graph: bool, held: State | None) -> None:
        self._decoder = decoder
        self._recorded = graph
        self._held = None if held is None else StepBuffers(decoder, held, donate=True)
        self._graph: StepGraph | None = None
        self._taken = False

    @torch.inference_mode()
    def open(self, state: State, *, donate: bool = False) -> TorchSteps:
        """Begin to step from `state`, which stays as it was unless it is given away.

        Raises:
            BudgetExceeded: torch's allocator refused to pass its cap, or the driver has no room;
                nothing is held for the steps then.
        """
        try:
            if self._recorded and not self._taken:
                steps = self._open_graph(state)
                if donate:
                    state.clear()
                return steps
            buffers = StepBuffers(self._decoder, state, donate=donate)
            if not donate:
                buffers.fill_(state)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise exceeded("Beginning to answer", error) from error
        return TorchSteps(buffers, buffers.advance_no_sync, lambda: None)

    def _open_graph(self, state: State) -> TorchSteps:
        if self._graph is None:
            buffers = self._held or StepBuffers(self._decoder, state)
            self._graph = StepGraph(self._decoder, buffers)
        self._graph.buffers.fill_(state)
        self._taken = True
        return TorchSteps(self._graph.buffers, self._graph.replay_no_sync_, self._on_close)

    def _on_close(self) -> None:
        self._taken = False
        if self._held is None:
            self._graph = None


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream for recording: cuBLAS makes a workspace for each stream that it meets."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def _copy_(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each source to its target, in one launch for all of a dtype."""
    for dtype in {target.dtype for target in targets}:
        pairs = [
            (target, source)
            for target, source in zip(targets, sources, strict=True)
            if target.dtype == dtype and target.numel()
        ]
        if pairs:
            torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the allocator or the driver had no room; what ends a recording may hide the cause."""
    return error is not None and (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in str(error)
        or _is_out_of_memory(error.__context__)
    )


def exceeded(what: str, error: BaseException) -> BudgetExceeded:
    """The error for people that `what` met.

    The frames of the one before it would keep what was allocated.
    """
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__, seen = None, seen.__context__
    return BudgetExceeded(
        f"{what} needs more memory than the budget leaves: {error}. Give a larger --budget."
    )
