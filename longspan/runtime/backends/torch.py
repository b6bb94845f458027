"""The torch backend: the `Decoder` itself, with Triton's kernels on CUDA.

Weights lie where `longspan.runtime.backends.torch_weights` puts them; there is one copy. On the
CPU arithmetic is float32 whatever the weights' dtype.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.bundle import Bundle
from longspan.engines import Engine
from longspan.errors import BadBundle, BudgetExceeded, DoesNotFit, MissingExtra
from longspan.runtime.backends import Arrays, State, Steps
from longspan.runtime.backends.caches import padded
from longspan.runtime.backends.forward_steps import ForwardSteps
from longspan.runtime.device_memory import memory_now
from longspan.sizes import format_bytes
from longspan.tensors import TensorSpec

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtra(needed_for="The torch backend", package="torch", extra="cuda") from error

from longspan.models.config import LAYER_KINDS, ModelConfig
from longspan.models.decoder import Decoder
from longspan.runtime.backends.torch_steps import Stepper
from longspan.runtime.backends.torch_weights import Streamed, Weights, read_weights

# glibc's malloc.h
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK_BYTES = 2**20


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
        streamed_layers: Sequence[int] = (),
        expert_slots: int = 0,
    ) -> None:
        self.engine = engine
        self._device = torch.device("cuda", 0) if engine == "torch-cuda" else torch.device("cpu")
        self._specs = bundle.manifest.state_at(capacity)
        if threads is not None:
            torch.set_num_threads(threads)
        if self._device.type == "cpu" and capacity:
            _return_large_blocks()
        if self._device.type == "cuda" and memory_limit_bytes is not None:
            _cap_allocator(self._device, memory_limit_bytes)
        streamed = Streamed(layers=tuple(streamed_layers), expert_slots=expert_slots)
        self._weights = _read(bundle, self._device, streamed)
        self._decoder: Decoder | None = _load(bundle, self._weights, self._device)
        self._stepper: Stepper | None = None
        if self._device.type == "cuda":
            keep = not bundle.manifest.cache_entry_bytes
            recorded = step_graph and not streamed
            self._stepper = Stepper(self._decoder, graph=recorded, keep=keep)

    def new_state(self) -> State:
        """Zeros on the device."""
        return {
            spec.name: torch.zeros(
                spec.shape, dtype=getattr(torch, spec.dtype), device=self._device
            )
            for spec in self._specs
        }

    @torch.inference_mode()
    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int]
    ) -> tuple[NDArray[np.float32], State]:
        """See `longspan.runtime.backends.Backend.forward`.

        Raises:
            BudgetExceeded: torch's allocator refused to pass its cap.
        """
        assert self._decoder is not None, "the backend is closed"
        ids = torch.tensor(tokens, dtype=torch.int64, device=self._device)[None]
        kept = torch.tensor(list(keep), dtype=torch.int64, device=self._device)
        try:
            logits, after = self._decoder(ids, kept, state)
        except torch.OutOfMemoryError as error:
            raise BudgetExceeded(
                f"A chunk of {len(tokens)} tokens needs more memory than the budget leaves: "
                f"{error}. Give a larger --budget."
            ) from error
        result: NDArray[np.float32] = logits[0].float().cpu().numpy()
        return result, {name: _own(tensor) for name, tensor in after.items()}

    def steps(self, state: State) -> Steps:
        """See `longspan.runtime.backends.Backend.steps`.

        Raises:
            BudgetExceeded: torch's allocator refused to pass its cap.
        """
        assert self._decoder is not None, "the backend is closed"
        return ForwardSteps(self, state) if self._stepper is None else self._stepper.open(state)

    def to_arrays(self, state: State) -> Arrays:
        """Copies in host memory; of caches, the entries in use."""
        return {spec.name: _to_array(_in_use(state, spec)) for spec in self._specs}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Copies on the device.

        Raises:
            DoesNotFit: a cache has more entries in use than there is room for.
        """
        return {
            spec.name: _to_tensor(padded(arrays, spec), spec, self._device) for spec in self._specs
        }

    def close(self) -> None:
        """Free the model, and give torch's spare memory back to the device."""
        self._decoder = self._stepper = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._weights.close()
            torch.cuda.empty_cache()


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


def _load(bundle: Bundle, weights: Weights, device: torch.device) -> Decoder:
    """A decoder whose parameters are these weights; nothing is allocated twice."""
    dtype = getattr(torch, bundle.manifest.dtype)
    compute = torch.float32 if device.type == "cpu" else dtype
    with torch.device("meta"):
        decoder = Decoder(bundle.manifest.config, dtype=dtype, compute=compute)
    try:
        decoder.load_state_dict(weights.tensors, assign=True)
    except RuntimeError as error:
        raise BadBundle(
            f"{bundle.weights_path} does not hold the tensors that the manifest describes: "
            f"{error}. Export the checkpoint again."
        ) from error
    weights.follow(decoder)
    return decoder.requires_grad_(False).eval()


def _return_large_blocks() -> None:
    """Let glibc give large blocks back to the system when they are freed.

    It would keep those below 32 MiB for blocks of their size, and scores grow with every chunk:
    over 4,096 tokens in chunks of 256 a process grew by 271 MiB, and so by 102.
    """
    if sys.platform != "linux":
        return
    # Other C libraries than glibc have no such function.
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _cap_allocator(device: torch.device, limit_bytes: int) -> None:
    """Cap torch's allocator at what the context and the libraries leave of the limit."""
    torch.ones(1, device=device)
    context = max(0, memory_now("cuda").bytes - torch.cuda.memory_reserved(device))
    if context >= limit_bytes:
        raise DoesNotFit(
            f"The CUDA context alone holds {format_bytes(context)}, and the limit is "
            f"{format_bytes(limit_bytes)}. Give a larger --budget, or choose --device cpu."
        )
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, (limit_bytes - context) / total), device)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without the rest of a larger buffer that it is a slice of."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _in_use(state: State, spec: TensorSpec) -> torch.Tensor:
    """A state tensor; of a cache, the entries in use."""
    tensor: torch.Tensor = state[spec.name]
    return tensor if spec.counter is None else tensor[:, : int(state[spec.counter])]


def _to_array(tensor: torch.Tensor) -> NDArray[Any]:
    host = tensor.detach().to("cpu", copy=True).contiguous()
    array: NDArray[Any] = (
        host.view(torch.uint16).numpy() if host.dtype == torch.bfloat16 else host.numpy()
    )
    return array


def _to_tensor(array: NDArray[Any], spec: TensorSpec, device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(np.ascontiguousarray(array))
    return (tensor.view(torch.bfloat16) if spec.dtype == "bfloat16" else tensor).to(device)
