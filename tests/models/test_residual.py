"""The residual that a mixer reads by itself: the same as its sum, norm and projection apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm, rms_norm

from longspan.kernels import override
from longspan.kernels.causal_conv import causal_conv
from longspan.models.linear import Linear
from longspan.models.norm import NORMS
from longspan.models.residual import Residual, project
from tests.kernels.devices import DEVICES
from tests.tolerances import assert_close

D, F, E, LAST, EPS = 12, 3, 8, 2, 1e-5


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


def a_norm(kind: Any, device: str) -> nn.Module:
    """A norm with random weights."""
    norm = NORMS[kind](D, eps=EPS, dtype=torch.float32).requires_grad_(False).to(device)
    for parameter in norm.parameters():
        parameter.normal_()
    return norm


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("stored", ["numbers", "bytes"])
@pytest.mark.parametrize("kind", ["rms", "layer", None])
@pytest.mark.parametrize("device", DEVICES)
def test_project(device: str, kind: str | None, stored: str, added: bool, length: int) -> None:
    in_proj: Any = a_linear(device) if stored == "numbers" else Bytes(device)
    conv_weight = torch.randn(E, 1, 4, device=device)
    x, y = torch.randn(2, 1, length, D, device=device)
    tail = torch.randn(1, 3, E, device=device)
    total = x + y if added else x.clone()
    source: torch.Tensor | Residual = x.clone()
    normed = x
    if kind is not None:
        norm: Any = a_norm(kind, device)
        source = Residual(x.clone(), norm, torch.float32)
        source.y = y.clone() if added else None
        if kind == "rms":
            normed = rms_norm(total, (D,), norm.weight, EPS)
        else:
            normed = layer_norm(total, (D,), norm.weight, norm.bias, EPS)
    before, u, after = in_proj(normed).split([F, E, LAST], dim=-1)
    u, expected_tail = causal_conv(u, conv_weight, None, tail, activation="silu")
    with override("norm_linear_conv", "triton"):
        found = project(source, in_proj, conv_weight, None, tail, first=F)
    for each, expected in zip(found, (before, u, after, expected_tail), strict=True):
        assert_close("norm_linear_conv", each, expected)
    if isinstance(source, Residual):
        assert source.y is None
        torch.testing.assert_close(source.x, total)
