"""How Mamba's layers begin: the same as projection and convolution apart, however it is stored."""

from __future__ import annotations

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.causal_conv import causal_conv
from longspan.models.config import Quantization
from longspan.models.linear import Linear
from longspan.models.project import project
from tests.kernels.devices import DEVICES
from tests.tolerances import assert_close

D, F, E, LAST = 36, 3, 8, 2


def a_linear(device: str, bits: int | None) -> Linear:
    """A projection with random weights."""
    linear = Linear(D, F + E + LAST, dtype=torch.float32).requires_grad_(False).to(device)
    if bits is None:
        linear.weight.normal_()
    else:
        linear.quantize_(Quantization(bits=bits, symmetric=False))
        linear.weight.random_(256)
        linear.scales.normal_(std=2.0**-bits)
        assert linear.zeros is not None
        linear.zeros.random_(256)
    return linear


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("device", DEVICES)
def test_project(device: str, bits: int | None, length: int) -> None:
    in_proj = a_linear(device, bits)
    conv_weight = torch.randn(E, 1, 4, device=device)
    x = torch.randn(1, length, D, device=device)
    tail = torch.randn(1, 3, E, device=device)
    before, u, after = in_proj(x).split([F, E, LAST], dim=-1)
    u, expected_tail = causal_conv(u, conv_weight, None, tail, activation="silu")
    with override("linear_conv", "triton"):
        found = project(x, in_proj, conv_weight, None, tail, first=F)
    for each, expected in zip(found, (before, u, after, expected_tail), strict=True):
        assert_close("linear_conv", each, expected)
