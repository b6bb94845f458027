"""Launches that overlap: where they may, and that nothing is any different."""

from __future__ import annotations

import pytest
import torch

from longspan.kernels.donation import states_donated
from longspan.kernels.launch import overlap_options
from longspan.kernels.overlap import launches_may_overlap, launches_overlap
from longspan.models.config import Mamba2Config, MlpConfig, ModelConfig, Quantization
from longspan.models.decoder import State
from tests.kernels.devices import DEVICES
from tests.runtime.stand_in import random_decoder

STEPS = 40


def test_only_inside_the_block() -> None:
    assert not launches_may_overlap()
    with launches_overlap():
        assert launches_may_overlap()
    assert not launches_may_overlap()


@pytest.mark.parametrize("device", DEVICES)
def test_only_where_the_gpu_can(device: str) -> None:
    x = torch.zeros(3, 2, device=device)
    can = device == "cuda" and torch.cuda.get_device_capability() >= (9, 0)
    overlapping = {"OVERLAP": True, "launch_pdl": True} if can else {"OVERLAP": False}
    assert overlap_options(x) == {"OVERLAP": False}
    with launches_overlap():
        assert overlap_options(x, x, None) == overlapping
        # Its copy would be written by the launch before.
        assert overlap_options(x, x.T) == {"OVERLAP": False}


@pytest.mark.gpu
@pytest.mark.parametrize("stored", [None, Quantization(bits=4), Quantization(bits=8)], ids=str)
@pytest.mark.parametrize("every", [1, 2], ids=["one kind", "two kinds"])
def test_steps_are_the_same_to_the_bit(every: int, stored: Quantization | None) -> None:
    """Wide enough for many programs a launch, deep enough for many launches under way.

    Where one mixer follows another of its kind, the norm between them is deferred.
    """
    mixer = Mamba2Config(n_heads=32, head_dim=64, n_groups=1, d_state=128, d_conv=4)
    layers = (mixer, MlpConfig(d_ff=3000))[:every] * 8
    config = ModelConfig(
        family="none", vocab_size=20_000, d_model=1024, layers=layers, quantization=stored
    )
    decoder = random_decoder(config, "bfloat16").to("cuda")
    tokens = torch.randint(20_000, (1, STEPS), device="cuda")

    def steps() -> tuple[torch.Tensor, State]:
        rows, state = [], decoder.new_state()
        for token in tokens.split(1, dim=1):
            logits, state = decoder(token, None, state)
            rows.append(logits)
        return torch.cat(rows), state

    with torch.inference_mode(), states_donated():
        expected, kept = steps()
        # Recorded: launched one by one from Python, hardly any would wait for another.
        graph = torch.cuda.CUDAGraph()
        with launches_overlap():
            steps()
            with torch.cuda.graph(graph):
                found, after = steps()
        graph.replay()
    assert bool(found.isfinite().all())
    assert torch.equal(found, expected)
    assert all(torch.equal(after[name], kept[name]) for name in kept)
