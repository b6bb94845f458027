"""Steps of several sequences side by side, over a `Decoder` alone.

    run = measure_batch("samba-1.7b", "bfloat16", options)     # in a process of its own

Weights, caches and states are random and lie where a generation would have left them after so many
tokens: neither memory nor time depends on what they hold. The next tokens are the likeliest, chosen
on the device. On CUDA a step is recorded as a graph, as the runtime records its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from model_runs import STEP_ROUNDS, Steps
from random_bundle import SHAPES, scaled

from longspan.engines import Device
from longspan.errors import DoesNotFit
from longspan.kernels.donation import states_donated
from longspan.kernels.overlap import launches_overlap
from longspan.models.checkpoint import empty_decoder
from longspan.models.config import ModelConfig
from longspan.models.decoder import Decoder
from longspan.runtime.device_memory import free_bytes, memory_peak
from longspan.sizes import format_bytes
from longspan.tensors import DType

# Before a round: kernels are compiled, and the clocks of the device are up.
WARM_UPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """What each process measures.

    Attributes:
        device: where.
        batch: sequences, B.
        contexts: tokens before the steps.
        steps: of a round, `STEP_ROUNDS` of which are timed.
    """

    device: Device
    batch: int
    contexts: tuple[int, ...]
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """One shape.

    Attributes:
        shape: its name.
        batch: sequences, B.
        weight_bytes: of all parameters.
        capacity: entries of each cache.
        peak_bytes: the most that the process held on the device.
        steps: after each context; their `state_bytes` are those of all sequences.
    """

    shape: str
    batch: int
    weight_bytes: int
    capacity: int
    peak_bytes: int
    steps: tuple[Steps, ...]


class Batch:
    """The next tokens of B sequences, their state, and the step that replaces both.

    Args:
        decoder: computes.
        batch: sequences, B.
        capacity: entries of each cache.
    """

    def __init__(self, decoder: Decoder, batch: int, capacity: int) -> None:
        self._decoder = decoder
        self.state = decoder.new_state(batch, capacity=capacity)
        for tensor in self.state.values():
            if tensor.is_floating_point():
                tensor.normal_()
        vocab_size, device = decoder.config.vocab_size, decoder.embedding.device
        self.tokens = torch.randint(vocab_size, (batch, 1), device=device)

    def begin_at_(self, context: int) -> None:
        """Let the state be one after so many tokens: caches hold as many entries from now on."""
        for name, tensor in self.state.items():
            if name.endswith(".position"):
                tensor.fill_(context)

    def advance_no_sync_(self) -> None:
        """Read the tokens; the likeliest next ones take their place."""
        with states_donated():
            logits, after = self._decoder(self.tokens, None, self.state)
        moved = [name for name, tensor in after.items() if tensor is not self.state[name]]
        torch._foreach_copy_([self.state[name] for name in moved], [after[name] for name in moved])
        self.tokens.copy_(logits.argmax(-1))

    def recorded(self) -> Callable[[], None]:
        """CUDA: the step as a graph, after one that is not; call it to run the graph."""
        device = self.tokens.device
        here = torch.cuda.current_stream(device)
        side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        # A step begins with the embedding, a launch that overlaps nothing.
        with launches_overlap():
            side.wait_stream(here)
            with torch.cuda.stream(side):
                self.advance_no_sync_()
            here.wait_stream(side)
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                self.advance_no_sync_()
        return graph.replay


def random_decoder(config: ModelConfig, weights: DType, device: Device) -> Decoder:
    """A decoder with random weights, scaled as those of a random bundle, made on the device.

    Of matrices that the config quantises, `weights` is the scales' dtype.
    """
    compute = torch.float32 if device == "cpu" else None
    decoder = empty_decoder(config, dtype=getattr(torch, weights), compute=compute)

    def random(name: str, like: torch.Tensor) -> torch.Tensor:
        if like.dtype == torch.uint8:
            return torch.randint(256, like.shape, dtype=torch.uint8, device=device)
        values = torch.randn(like.shape, dtype=like.dtype, device=device)
        return scaled(name, values, tuple(like.shape), config.quantization)

    tensors = {name: random(name, each) for name, each in decoder.state_dict().items()}
    decoder.load_state_dict(tensors, assign=True)
    return decoder.requires_grad_(False).eval()


def state_bytes(config: ModelConfig, weights: DType, batch: int, context: int) -> int:
    """Bytes of the states of all sequences after `context` tokens; windows count as full."""
    layout = config.state_layout(weights, context)
    return sum(spec.nbytes * (1 if spec.dtype == "int64" else batch) for spec in layout)


def time_steps(batch: Batch, step: Callable[[], None], context: int, steps: int) -> list[float]:
    """Milliseconds of a step, on average, in each of `STEP_ROUNDS` rounds of so many."""
    on_cuda = batch.tokens.device.type == "cuda"
    rounds = []
    for _ in range(STEP_ROUNDS):
        batch.begin_at_(context)
        for _ in range(WARM_UPS):
            step()
        if on_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            step()
        if on_cuda:
            torch.cuda.synchronize()
        rounds.append(1e3 * (time.perf_counter() - started) / steps)
    return rounds


@torch.inference_mode()
def measure_batch(shape: str, weights: DType, options: BatchOptions) -> BatchRun:
    """Measure one of the shapes in this process.

    Raises:
        DoesNotFit: the device has no room for the weights and the states.
    """
    config = SHAPES[shape]
    capacity = max(options.contexts) + WARM_UPS + options.steps
    parameters = empty_decoder(config, dtype=getattr(torch, weights)).state_dict()
    weight_bytes = sum(each.nbytes for each in parameters.values())
    needed = weight_bytes + state_bytes(config, weights, options.batch, capacity)
    free = free_bytes(options.device)
    if needed > free:
        raise DoesNotFit(
            f"{options.batch} sequences of {shape} after {max(options.contexts):,} tokens take "
            f"{format_bytes(needed)} of weights and states; {options.device} has "
            f"{format_bytes(free)} free. Give a smaller --batch or shorter --contexts."
        )
    batch = Batch(random_decoder(config, weights, options.device), options.batch, capacity)
    step = batch.recorded() if options.device == "cuda" else batch.advance_no_sync_
    found = []
    for context in options.contexts:
        rounds = time_steps(batch, step, context, options.steps)
        found.append(
            Steps(
                context=context,
                median_ms=median(rounds),
                least_ms=min(rounds),
                most_ms=max(rounds),
                state_bytes=state_bytes(config, weights, options.batch, context),
            )
        )
    return BatchRun(
        shape=shape,
        batch=options.batch,
        weight_bytes=weight_bytes,
        capacity=capacity,
        peak_bytes=memory_peak(options.device).bytes,
        steps=tuple(found),
    )
