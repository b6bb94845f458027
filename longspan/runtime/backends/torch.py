"""The torch backend: the `Decoder` itself, with Triton's kernels on CUDA.

Weights lie where `longspan.runtime.backends.torch_weights` puts them; there is one copy. On the
CPU arithmetic is float32 whatever the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.bundle import Bundle
from longspan.engines import Engine
from longspan.errors import BadBundle, BudgetExceeded, MissingExtra
from longspan.runtime.backends import Arrays, State, Steps
from longspan.runtime.backends.forward_steps import ForwardSteps
from longspan.runtime.device_memory import cap_allocator, grow_in_place
from longspan.runtime.host_memory import set_mmap_threshold, trim
from longspan.tensors import CacheDType

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtra(needed_for="The torch backend", package="torch", extra="cuda") from error

from longspan.kernels.donation import states_donated
from longspan.models.config import LAYER_KINDS, ModelConfig
from longspan.models.decoder import Decoder
from longspan.runtime.backends.torch_caches import to_array, to_int8, to_tensor
from longspan.runtime.backends.torch_steps import Stepper, exceeded
from longspan.runtime.backends.torch_weights import Streamed, Weights, read_weights


class TorchBackend:
    """A `Decoder` on the CPU or the first CUDA device.

    Args:
        bundle: the model.
        engine: ``"torch-cpu"`` or ``"torch-cuda"``.
        memory_limit_bytes: CUDA: what the whole process may hold on the device, its context
            among it; torch's allocator is capped at the rest. None for no cap.
        threads: CPU: threads of one operation; None leaves torch's own setting. It holds for
            the whole process.
        capacity: entries of each cache.
        step_graph: CUDA: whether a step is recorded once and replayed.
        cache_dtype: what the device keeps keys and values in; None for the manifest's dtype.
        streamed_layers: CUDA: layers whose weights wait in pinned host memory; a step is not
            recorded then.
        expert_slots: CUDA: experts that the device holds at once, at least 2, while all wait in
            pinned host memory; 0 where it holds them all. A step is not recorded then.

    Raises:
        BadBundle: the weights do not match the manifest.
        BudgetExceeded: torch's allocator has no room for the weights.
        DoesNotFit: the CUDA context alone passes the limit, or host memory cannot be pinned.
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
        cache_dtype: CacheDType | None = None,
        streamed_layers: Sequence[int] = (),
        expert_slots: int = 0,
    ) -> None:
        self.engine = engine
        self._device = torch.device("cuda", 0) if engine == "torch-cuda" else torch.device("cpu")
        self._specs = bundle.manifest.state_at(capacity)
        self._held = bundle.manifest.state_at(capacity, cache_dtype)
        if threads is not None:
            torch.set_num_threads(threads)
        if self._device.type == "cpu":
            set_mmap_threshold()
        else:
            grow_in_place()
        if self._device.type == "cuda" and memory_limit_bytes is not None:
            torch.ones(1, device=self._device)
            cap_allocator(memory_limit_bytes)
        streamed = Streamed(layers=tuple(streamed_layers), expert_slots=expert_slots)
        self._weights = _read(bundle, self._device, streamed)
        self._decoder: Decoder | None = _load(bundle, self._weights, self._device, cache_dtype)
        self._stepper: Stepper | None = None
        if self._device.type == "cuda":
            recorded = step_graph and not streamed
            held = recorded and not bundle.manifest.cache_entry_bytes
            self._stepper = Stepper(
                self._decoder, graph=recorded, held=self.new_state() if held else None
            )

    def new_state(self) -> State:
        """Zeros on the device."""
        return {
            spec.name: torch.zeros(
                spec.shape, dtype=getattr(torch, spec.dtype), device=self._device
            )
            for spec in self._held
        }

    @torch.inference_mode()
    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """See `longspan.runtime.backends.Backend.forward`.

        Nothing in it waits for the device unless there are logits to give.

        Raises:
            BudgetExceeded: torch's allocator refused to pass its cap.
        """
        assert self._decoder is not None, "the backend is closed"
        ids = self._to_device(tokens)[None]
        kept = torch.tensor(list(keep), dtype=torch.int64, device=self._device)
        try:
            with states_donated() if donate else nullcontext():
                logits, after = self._decoder(ids, kept, state, donate=donate)
        except torch.OutOfMemoryError as error:
            raise exceeded(f"A chunk of {len(tokens)} tokens", error) from error
        result: NDArray[np.float32] = logits[0].float().cpu().numpy()
        return result, {name: _own(tensor) for name, tensor in after.items()}

    def steps(self, state: State, *, donate: bool = False) -> Steps:
        """See `longspan.runtime.backends.Backend.steps`.

        Raises:
            BudgetExceeded: torch's allocator refused to pass its cap.
        """
        assert self._decoder is not None, "the backend is closed"
        if self._stepper is None:
            return ForwardSteps(self, state, donate=donate)
        return self._stepper.open(state, donate=donate)

    def to_arrays(self, state: State) -> Arrays:
        """Copies in host memory, in the manifest's dtypes; of caches, the entries in use."""
        return {spec.name: to_array(state, spec) for spec in self._specs}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Copies on the device.

        Raises:
            DoesNotFit: a cache has more entries in use than there is room for.
        """
        state: dict[str, torch.Tensor] = {}
        held = {spec.name: spec.dtype for spec in self._held}
        for spec in self._specs:
            if held[spec.name] == "int8":
                state |= to_int8(arrays, spec, self._device)
            else:
                state[spec.name] = to_tensor(arrays, spec, self._device)
        return state

    def _to_device(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """A copy; to a GPU from pinned memory, which the host need not wait for."""
        ids = torch.tensor(tokens, dtype=torch.int64)
        if self._device.type == "cuda":
            ids = ids.pin_memory()
        return ids.to(self._device, non_blocking=True)

    def release(self, memory_limit_bytes: int | None) -> None:
        """See `longspan.runtime.backends.Backend.release`.

        Raises:
            DoesNotFit: the CUDA context and its libraries alone hold more than the limit.
        """
        if self._device.type == "cpu":
            trim()
            return
        torch.cuda.empty_cache()
        if memory_limit_bytes is not None:
            cap_allocator(memory_limit_bytes)

    def close(self) -> None:
        """Free the model, and give torch's spare memory back to the device."""
        self._decoder = self._stepper = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._weights.close()
            torch.cuda.empty_cache()
        else:
            trim()


@torch.inference_mode()
def run_tiny_model() -> None:
    """Run every kind of layer once on the CPU, so that torch has loaded what they need."""
    layers = tuple(kind.tiny() for kind in LAYER_KINDS.values())
    config = ModelConfig(family="none", vocab_size=8, d_model=4, layers=layers)
    decoder, tokens = Decoder(config), 32
    for parameter in decoder.parameters():
        parameter.zero_()
    state = decoder.new_state(capacity=tokens)
    decoder(torch.zeros(1, tokens, dtype=torch.int64), None, state)


def _read(bundle: Bundle, device: torch.device, streamed: Streamed) -> Weights:
    try:
        return read_weights(bundle.weights_path, bundle.manifest.config, device, streamed)
    except torch.OutOfMemoryError as error:
        raise BudgetExceeded(
            f"The weights need more memory than the budget leaves: {error}. Give a larger --budget."
        ) from error


def _load(
    bundle: Bundle, weights: Weights, device: torch.device, cache_dtype: CacheDType | None
) -> Decoder:
    """A decoder whose parameters are these weights; nothing is allocated twice."""
    dtype = getattr(torch, bundle.manifest.dtype)
    compute = torch.float32 if device.type == "cpu" else dtype
    with torch.device("meta"):
        decoder = Decoder(
            bundle.manifest.config, dtype=dtype, compute=compute, cache_dtype=cache_dtype
        )
    try:
        decoder.load_state_dict(weights.tensors, assign=True)
    except RuntimeError as error:
        raise BadBundle(
            f"{bundle.weights_path} does not hold the tensors that the manifest describes: "
            f"{error}. Export the checkpoint again."
        ) from error
    weights.follow(decoder)
    return decoder.requires_grad_(False).eval()


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without the rest of a larger buffer that it is a slice of."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
