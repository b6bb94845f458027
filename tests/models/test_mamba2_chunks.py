"""A chunk of Mamba-2 frees what it has read; its rows are those of single tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from longspan.export.activations import chunk_bytes
from longspan.kernels import override
from longspan.models.config import Mamba2Config, ModelConfig
from longspan.models.decoder import Decoder
from tests.runtime.live_bytes import LiveBytes
from tests.runtime.stand_in import random_decoder

# Sizes in the proportions of published models.
PLAIN = Mamba2Config(n_heads=8, head_dim=16, n_groups=1, d_state=16, d_conv=4)
LAYERS = {
    "plain": PLAIN,
    # Of published models the output has more than B and C: the gate must be gone by then.
    "few states": Mamba2Config(n_heads=4, head_dim=32, n_groups=1, d_state=8, d_conv=4),
    "groups": Mamba2Config(n_heads=8, head_dim=16, n_groups=2, d_state=16, d_conv=4),
    "biases": Mamba2Config(
        n_heads=8, head_dim=16, n_groups=1, d_state=16, d_conv=4, proj_bias=True, dt_max=0.1
    ),
    "no norm": Mamba2Config(
        n_heads=8, head_dim=16, n_groups=1, d_state=16, d_conv=4, norm_eps=None
    ),
}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def config_of(layer: Mamba2Config) -> ModelConfig:
    return ModelConfig(family="mamba2", vocab_size=20, d_model=128, layers=(layer,) * 2)


@each_layer
@torch.inference_mode()
def test_a_chunk_is_its_tokens_one_by_one(layer: Mamba2Config) -> None:
    decoder = random_decoder(config_of(layer), "float32")
    tokens = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(0))
    state = decoder.new_state(batch=2)
    whole, after = decoder(tokens, torch.arange(9), state)
    rows, one = [], state
    for index in range(9):
        logits, one = decoder(tokens[:, index : index + 1], None, one)
        rows.append(logits)
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one, after, rtol=1e-4, atol=1e-5)


class Bare:
    """The ops as Triton's kernels allocate, without their arithmetic and without scratch."""

    @staticmethod
    def causal_conv(x: torch.Tensor, weight: Any, bias: Any, tail: torch.Tensor, **_: Any) -> Any:
        """New tensors of the output and the tail."""
        return torch.empty_like(x, memory_format=torch.contiguous_format), tail.clone()

    @staticmethod
    def ssd(x: torch.Tensor, *_: Any, state: torch.Tensor, **__: Any) -> Any:
        """New tensors of the output and the state."""
        return torch.empty(x.shape, dtype=x.dtype), state.clone()

    @staticmethod
    def rms_norm(x: torch.Tensor, weight: Any, *, overwrite: bool, **_: Any) -> torch.Tensor:
        """In place where it may be."""
        assert x.is_contiguous()
        return x if overwrite else torch.empty_like(x)

    @staticmethod
    def swiglu(gate: torch.Tensor, x: torch.Tensor, *, overwrite: bool) -> torch.Tensor:
        """A new tensor."""
        return torch.empty_like(x)

    @staticmethod
    def add_norm(x: torch.Tensor, y: Any, *_: Any, dtype: torch.dtype, **__: Any) -> Any:
        """The sum in place, and its norm."""
        return x, torch.empty(x.shape, dtype=dtype)


@pytest.fixture
def bare() -> Iterator[None]:
    with ExitStack() as stack:
        for op in ("causal_conv", "ssd", "rms_norm", "swiglu", "add_norm"):
            stack.enter_context(override(op, getattr(Bare, op)))
        yield


@each_layer
@pytest.mark.usefixtures("bare")
def test_a_token_of_a_chunk_takes_what_the_formula_says(layer: Mamba2Config) -> None:
    """The scan's scratch is the kernel's, and no part of this."""
    config = config_of(layer)
    first, *_, rest = chunk_bytes(config, "bfloat16")["torch-cuda"]
    scratch = 4 * 2 * layer.n_heads + 2 * layer.n_groups * 64 + 1
    formula = first.per_token + rest.per_token
    found = (peak(config, 512) - peak(config, 256)) / 256
    assert formula - scratch - 64 <= found <= formula


@torch.inference_mode()
def peak(config: ModelConfig, tokens: int) -> int:
    """Bytes that live at most while a chunk is read."""
    decoder = Decoder(config, dtype=torch.bfloat16).requires_grad_(False)
    state = decoder.new_state()
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with LiveBytes(state.values(), weights=decoder.parameters()) as live:
        decoder(ids, torch.zeros(0, dtype=torch.int64), state, donate=True)
    return live.peak
