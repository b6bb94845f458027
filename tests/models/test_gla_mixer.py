"""The mixer of gated linear attention and retention: any cut, any dtype, decays, the state."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.kernels import override
from longspan.models.config import GlaConfig, ModelConfig
from longspan.models.decoder import Decoder
from longspan.models.gla import GatedLinearAttention
from tests.kernels.devices import DEVICES
from tests.tolerances import assert_close

WIDTH, TOKENS = 12, 40
GATED = GlaConfig(n_heads=3, key_dim=4, value_dim=5, gate_rank=2)
RETENTION = GlaConfig(n_heads=3, key_dim=4, value_dim=5, gate_rank=None, rope_base=10000.0)
ROTATED_GATES = GlaConfig(n_heads=2, key_dim=6, value_dim=3, gate_rank=2, rope_base=50.0)
CONFIGS = {"gated": GATED, "retention": RETENTION, "rotated gates": ROTATED_GATES}
State = dict[str, torch.Tensor]


def mixer_of(config: GlaConfig, dtype: torch.dtype = torch.float64) -> GatedLinearAttention:
    mixer = GatedLinearAttention(config, WIDTH, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    for parameter in mixer.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(noise if parameter.dim() > 1 else 1 + noise)
    return mixer.requires_grad_(False)


def new_state(config: GlaConfig, dtype: torch.dtype = torch.float64) -> State:
    return {
        spec.name: torch.zeros(spec.shape, dtype=torch.int64 if spec.name == "position" else dtype)
        for spec in config.state("float32")
    }


def read(
    mixer: GatedLinearAttention, x: torch.Tensor, cuts: list[int], state: State
) -> tuple[torch.Tensor, State]:
    outputs = []
    for part in x.split(cuts, dim=1):
        y, state = mixer(part, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=25, deadline=None)
@given(inner=st.sets(st.integers(1, TOKENS - 1)))
def test_any_cut_gives_the_same(name: str, inner: set[int]) -> None:
    config = CONFIGS[name]
    mixer = mixer_of(config)
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    ends = [0, *sorted(inner), TOKENS]
    cuts = [end - start for start, end in pairwise(ends)]
    expected_y, expected = read(mixer, x, [TOKENS], new_state(config))
    y, state = read(mixer, x, cuts, new_state(config))
    torch.testing.assert_close(y, expected_y, atol=1e-12, rtol=1e-10)
    assert state.keys() == expected.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, expected[key], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_state_is_float32_whatever_the_weights(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    x = torch.randn(1, TOKENS, WIDTH, dtype=dtype)
    y, state = mixer_of(config, dtype)(x, new_state(config, torch.float32))
    assert (y.dtype, state["recurrent"].dtype) == (dtype, torch.float32)
    wide = mixer_of(config)
    for parameter, narrow in zip(
        wide.parameters(), mixer_of(config, dtype).parameters(), strict=True
    ):
        parameter.data.copy_(narrow)
    expected, expected_state = wide(x.double(), new_state(config))
    # The largest of some hundred values, each rounded a few times.
    tolerance = 16 * torch.finfo(dtype).eps
    for found, right in ((y, expected), (state["recurrent"], expected_state["recurrent"])):
        assert (found.double() - right).abs().max() <= tolerance * right.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("device", DEVICES)
def test_triton_equals_reference(name: str, device: str) -> None:
    """One token, a long chunk, and a short one: the ways that the kernel takes to a result."""
    config = CONFIGS[name]
    mixer = mixer_of(config, torch.float32).to(device)
    x = torch.randn(1, 70, WIDTH, device=device) / WIDTH
    state = {key: tensor.to(device) for key, tensor in new_state(config, torch.float32).items()}
    with override("gla", "reference"):
        expected_y, expected = read(mixer, x, [70], state)
    with override("gla", "triton"):
        y, found = read(mixer, x, [1, 62, 7], state)
    assert_close("gla", y, expected_y)
    assert_close("gla", found["recurrent"], expected["recurrent"])


def test_retention_keeps_what_the_paper_says() -> None:
    """Head h keeps 1 - 2^(-5-h) of its state at each token (arXiv 2307.08621, equation 8)."""
    mixer = mixer_of(RETENTION)
    mixer.in_proj.weight.zero_()
    state = new_state(RETENTION)
    state["recurrent"] += 1
    _, after = mixer(torch.randn(1, 100, WIDTH, dtype=torch.float64), state)
    for head in range(3):
        kept = (1 - 2.0 ** (-5 - head)) ** 100
        torch.testing.assert_close(
            after["recurrent"][0, head], torch.full((4, 5), kept, dtype=torch.float64)
        )


def test_a_gate_keeps_what_its_bias_says() -> None:
    """sigmoid(bias)^(1/16) of a key channel's row (arXiv 2312.06635, section 4.4)."""
    mixer = mixer_of(GATED)
    assert mixer.decay_proj is not None
    assert mixer.decay_proj.bias is not None
    mixer.in_proj.weight.zero_()
    state = new_state(GATED)
    state["recurrent"] += 1
    _, after = mixer(torch.randn(1, 1, WIDTH, dtype=torch.float64), state)
    bias = mixer.decay_proj.bias.view(3, 4)
    for head in range(3):
        for key in range(4):
            kept = (1 / (1 + math.exp(-bias[head, key]))) ** (1 / 16)
            assert after["recurrent"][0, head, key].tolist() == pytest.approx([kept] * 5)


def test_a_closed_gate_stays_finite() -> None:
    """A log decay of -30 a token and more: exp(-b) would overflow float32 after three tokens."""
    mixer = mixer_of(GATED, torch.float32)
    assert mixer.decay_proj is not None
    assert mixer.decay_proj.bias is not None
    mixer.decay_proj.bias.fill_(-480)
    y, state = mixer(torch.randn(1, 30, WIDTH), new_state(GATED, torch.float32))
    assert bool(y.isfinite().all())
    assert bool(state["recurrent"].isfinite().all())


def test_a_rotated_state_does_not_know_how_far_it_has_read() -> None:
    """Scores of rotated queries and keys depend on distances: a start at 10^6 changes nothing."""
    mixer = mixer_of(RETENTION)
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    far = new_state(RETENTION)
    far["position"] += 1_000_000
    y, _ = mixer(x, new_state(RETENTION))
    far_y, far_state = mixer(x, far)
    torch.testing.assert_close(far_y, y, atol=1e-8, rtol=0)
    assert far_state["position"].tolist() == [1_000_000 + TOKENS]


def test_state_of_a_model() -> None:
    layers = (GlaConfig(n_heads=4, key_dim=192, value_dim=384), RETENTION)
    config = ModelConfig(family="t", vocab_size=5, d_model=WIDTH, layers=layers)
    found = {spec.name: (spec.shape, spec.dtype) for spec in config.state_layout("bfloat16")}
    assert found == {
        "layers.0.recurrent": ((1, 4, 192, 384), "float32"),
        "layers.1.recurrent": ((1, 3, 4, 5), "float32"),
        "layers.1.position": ((1,), "int64"),
    }
    assert ModelConfig.from_json(config.to_json()) == config


def test_the_tiny_one_runs() -> None:
    config = ModelConfig(family="t", vocab_size=5, d_model=4, layers=(GlaConfig.tiny(),))
    decoder = Decoder(config)
    for parameter in decoder.parameters():
        parameter.data.zero_()
    logits, _ = decoder(torch.zeros(1, 3, dtype=torch.int64), None, decoder.new_state())
    assert logits.tolist() == [[[0.0] * 5]]
