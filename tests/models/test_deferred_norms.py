"""Steps whose norms are deferred: fewer launches, the same logits and state."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.add_norm.reference import add_norm
from longspan.kernels.linear import triton_rows
from longspan.models.config import LayerConfig, Mamba2Config, MlpConfig, ModelConfig, Quantization
from longspan.models.decoder import State
from tests.kernels.devices import DEVICES
from tests.runtime.stand_in import random_decoder

STEPS = 2
MIXER = Mamba2Config(n_heads=4, head_dim=8, n_groups=1, d_state=4, d_conv=4)
GROUPED = Mamba2Config(n_heads=4, head_dim=8, n_groups=2, d_state=4, d_conv=4)
BARE = Mamba2Config(n_heads=4, head_dim=8, n_groups=1, d_state=4, d_conv=4, norm_eps=None)
MLP = MlpConfig(d_ff=40)


@pytest.mark.parametrize(
    ("layers", "norms", "stored"),
    [
        # The first norm is a launch of its own, and the last before a head of floating point.
        ((MIXER, MIXER, MIXER), 2, None),
        ((MIXER, MIXER), 1, Quantization(bits=4)),
        ((MIXER, MIXER), 2, Quantization(bits=4, embedding=False, head=False)),
        ((MIXER, MLP), 3, Quantization(bits=4)),
        ((GROUPED, MIXER), 2, None),
        # Only where both mixers defer.
        ((MIXER, MLP, MIXER), 4, None),
        ((MIXER, BARE), 3, None),
    ],
    ids=[
        "three",
        "packed",
        "packed layers",
        "packed MLP",
        "groups",
        "others between",
        "no gated norm",
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_steps(
    device: str,
    layers: tuple[LayerConfig, ...],
    norms: int,
    stored: Quantization | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The interpreter runs programs one by one.
    monkeypatch.setattr(triton_rows, "MIN_PROGRAMS", 1)
    config = ModelConfig(
        family="none", vocab_size=50, d_model=32, layers=layers, quantization=stored
    )
    decoder = random_decoder(config, "float32").to(device)
    calls = 0

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return add_norm(*args, **kwargs)  # type: ignore[arg-type]

    def steps(implementation: str) -> tuple[torch.Tensor, State]:
        rows, state = [], decoder.new_state()
        with ExitStack() as stack:
            stack.enter_context(override("add_norm", counted))
            for op in ("linear_conv", "ssd_norm_linear", "quantized_linear"):
                stack.enter_context(override(op, implementation))  # type: ignore[arg-type]
            for t in range(STEPS):
                logits, state = decoder(torch.tensor([[t]], device=device), None, state)
                rows.append(logits)
        return torch.cat(rows), state

    expected, expected_state = steps("reference")
    assert calls == STEPS * (len(layers) + 1)
    calls = 0
    found, state = steps("triton")
    assert calls == STEPS * norms
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, each in expected_state.items():
        torch.testing.assert_close(state[name], each, rtol=1e-4, atol=1e-4)
