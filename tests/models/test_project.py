"""How Mamba's layers begin: the same as projection and convolution apart, however it is stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from longspan.kernels import override
from longspan.kernels.causal_conv import causal_conv
from longspan.models.linear import Linear
from longspan.models.project import project
from tests.kernels.devices import DEVICES
from tests.tolerances import assert_close

D, F, E, LAST = 12, 3, 8, 2


class Bytes(nn.Module):
    """A projection whose weight is stored in bytes, as a quantised one is."""

    def __init__(self, device: str) -> None:
        super().__init__()
        shape = F + E + LAST, D
        self.weight = torch.randint(256, shape, dtype=torch.uint8, device=device)
        self.bias = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by weights from -1 to 1."""
        return x @ (self.weight / 128.0 - 1.0).T


def a_linear(device: str) -> Linear:
    """A projection with random weights."""
    linear = Linear(D, F + E + LAST, dtype=torch.float32).requires_grad_(False).to(device)
    linear.weight.normal_()
    return linear


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("stored", ["numbers", "bytes"])
@pytest.mark.parametrize("device", DEVICES)
def test_project(device: str, stored: str, length: int) -> None:
    in_proj: Any = a_linear(device) if stored == "numbers" else Bytes(device)
    conv_weight = torch.randn(E, 1, 4, device=device)
    x = torch.randn(1, length, D, device=device)
    tail = torch.randn(1, 3, E, device=device)
    before, u, after = in_proj(x).split([F, E, LAST], dim=-1)
    u, expected_tail = causal_conv(u, conv_weight, None, tail, activation="silu")
    with override("linear_conv", "triton"):
        found = project(x, in_proj, conv_weight, None, tail, first=F)
    for each, expected in zip(found, (before, u, after, expected_tail), strict=True):
        assert_close("linear_conv", each, expected)
