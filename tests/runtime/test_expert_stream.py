"""Experts that stream: only the chosen ones come, the busiest stay, and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from stand_in import random_decoder
from test_streaming import LateCopies, read, same, streamed

from longspan.models.config import MambaConfig, MlpConfig, ModelConfig, MoeConfig, Quantization
from longspan.models.decoder import Decoder
from longspan.runtime.backends.expert_stream import ExpertStream
from longspan.runtime.backends.streaming import CudaCopies
from longspan.runtime.plan_weights import place_weights, weight_sizes

EXPERTS, WIDTH, D_FF = 6, 16, 8
CONFIG = ModelConfig(
    family="mixcon",
    vocab_size=50,
    d_model=WIDTH,
    layers=(
        MambaConfig(d_inner=32, d_state=4, d_conv=4, dt_rank=2),
        MoeConfig(n_experts=EXPERTS, top_k=2, d_ff=24),
        MlpConfig(d_ff=24),
        MoeConfig(n_experts=3, top_k=1, d_ff=12, renormalise=True),
        MlpConfig(d_ff=24),
    ),
)
# Of one mixture all matrices have 4 bits, of the other one of the two.
PACKED = ModelConfig(
    family="mixcon",
    vocab_size=50,
    d_model=32,
    layers=(
        MlpConfig(d_ff=40),
        MoeConfig(n_experts=EXPERTS, top_k=2, d_ff=40),
        MlpConfig(d_ff=40),
        MoeConfig(n_experts=3, top_k=1, d_ff=24, renormalise=True),
        MlpConfig(d_ff=40),
    ),
    quantization=Quantization(bits=4, symmetric=False, experts=True),
)
LAYERS = (0, 2, 4)


class Counted(LateCopies):
    """Copies that are counted.

    Attributes:
        started: how many there were.
    """

    started = 0

    def start(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        self.started += 1
        return super().start(target, source)


def made(slots: int, mixtures: int = 1) -> tuple[ExpertStream, Counted, list[Any]]:
    """A stream, its copies, and the experts as they lie in host memory."""
    copies = Counted()
    held = [
        (torch.randn(EXPERTS, 2 * D_FF, WIDTH), torch.randn(EXPERTS, WIDTH, D_FF))
        for _ in range(mixtures)
    ]
    stream = ExpertStream(held, slots=slots, device=torch.device("cpu"), copies=copies)
    return stream, copies, held


def take(stream: ExpertStream, held: list[Any], mixture: int, tokens: Mapping[int, int]) -> None:
    """Bring experts, and compare each with what lies in host memory while it is valid."""
    seen = []
    for expert, tensors in stream.bring(mixture, tokens):
        for tensor, stack in zip(tensors, held[mixture], strict=True):
            assert torch.equal(tensor, stack[expert])
        seen.append(expert)
    assert seen == list(tokens)


@pytest.mark.parametrize("slots", [2, 3, 5, EXPERTS, 2 * EXPERTS])
def test_every_expert_is_there_in_its_turn(slots: int) -> None:
    stream, _, held = made(slots, mixtures=2)
    for count in [1, 3, EXPERTS, 2] * 8:
        for mixture in range(2):
            chosen = torch.randperm(EXPERTS)[:count].tolist()
            take(stream, held, mixture, dict.fromkeys(sorted(chosen), 1))


def test_only_chosen_experts_are_copied_and_once_if_there_is_room() -> None:
    stream, copies, held = made(slots=4)
    take(stream, held, 0, {1: 5, 4: 5})
    assert copies.started == 2 * 2
    take(stream, held, 0, {1: 5, 4: 5})
    assert copies.started == 2 * 2
    take(stream, held, 0, {0: 1, 1: 5, 5: 1})
    assert copies.started == 2 * 4


def test_the_busiest_stay() -> None:
    """Two are asked for most; the others pass through the two other slots."""
    stream, copies, held = made(slots=4)
    for other in (0, 1, 3, 4):
        take(stream, held, 0, {2: 100, 5: 100})
        take(stream, held, 0, {other: 1})
    assert copies.started == 2 * EXPERTS


def test_the_next_is_copied_before_it_is_asked_for() -> None:
    stream, copies, _ = made(slots=2)
    bringing = stream.bring(0, {0: 1, 1: 1, 2: 1})
    next(bringing)
    assert copies.started == 2 * 2
    next(bringing)
    assert copies.started == 2 * 3


def test_after_a_call_that_ended_early() -> None:
    stream, _, held = made(slots=2)
    next(iter(stream.bring(0, {0: 1, 1: 1, 2: 1})))
    take(stream, held, 0, {1: 1, 2: 1, 3: 1})


@pytest.fixture(params=[CONFIG, PACKED], ids=["float", "packed"])
def mixtures(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Decoder, Path]:
    """A decoder with two mixtures, and its file."""
    decoder = random_decoder(request.param, "float32")
    path = tmp_path / "weights.safetensors"
    save_file(decoder.state_dict(), path)
    return decoder, path


@pytest.mark.parametrize("layers", [(), LAYERS], ids=str)
@pytest.mark.parametrize("slots", [2, 3, 9])
def test_a_decoder_reads_and_steps_the_same(
    mixtures: tuple[Decoder, Path], layers: tuple[int, ...], slots: int
) -> None:
    resident, path = mixtures
    moving = streamed(resident, path, layers, LateCopies(), slots)
    for cuts in ([9, 1, 1, 5], [1] * 6, [20]):
        same(read(moving, cuts), read(resident, cuts))


def test_bytes_are_those_of_the_plan(mixtures: tuple[Decoder, Path]) -> None:
    resident, path = mixtures
    placed = place_weights(weight_sizes(path, resident.config), (), 3)
    moving = streamed(resident, path, (), LateCopies(), 3)
    parameters = dict(moving.named_parameters())
    staying = ("norm.weight", "layers.1.mixer.router.weight", "layers.2.mixer.down_proj.weight")
    blocks = {parameters[name].untyped_storage().data_ptr() for name in staying}
    assert len(blocks) == 1
    assert parameters["norm.weight"].untyped_storage().nbytes() == placed.resident_bytes
    mixer: Any = moving.layers[1].mixer
    slots = mixer.bring.func.__self__._slots
    assert sum(slot.bytes.nbytes for slot in slots) == placed.expert_slots_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_too(mixtures: tuple[Decoder, Path], dtype: torch.dtype) -> None:
    """Against the experts by Triton: the same sums in another order."""
    decoder, path = mixtures
    resident = random_decoder(decoder.config, "float32" if dtype == torch.float32 else "bfloat16")
    save_file(resident.state_dict(), path)
    resident, copies = resident.to("cuda"), CudaCopies(torch.device("cuda", 0))
    for layers in ((), LAYERS):
        moving = streamed(resident, path, layers, copies, 2)
        for cuts in ([20], [9, 1, 1, 5]):
            found, expected = read(moving, cuts)[0], read(resident, cuts)[0]
            error = float((found - expected).abs().max() / expected.abs().max())
            assert error < {torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
