"""Causal convolution: the reference against conv1d, the Triton kernel against the reference."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.nn.functional import conv1d, silu

from longspan.kernels import override
from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.causal_conv.reference import causal_conv as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, widen
from tests.tolerances import assert_close

Activation = Literal["silu"] | None


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tail: torch.Tensor | None,
    activation: Activation,
) -> None:
    with override("causal_conv", "triton"):
        y, new_tail = causal_conv(x, weight, bias, tail, activation=activation)
    zeros = x.new_zeros(x.shape[0], weight.shape[2] - 1, x.shape[2])
    before = zeros if tail is None else tail
    expected, expected_tail = reference(
        x.double(), weight.double(), widen(bias), before.double(), activation=activation
    )
    assert y.dtype == x.dtype
    assert_close("causal_conv", y, expected)
    assert new_tail.is_contiguous()
    assert torch.equal(new_tail.double(), expected_tail)


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_reference_is_torchs(length: int, biased: bool, activation: Activation) -> None:
    x, tail = torch.randn(2, length, 5).double(), torch.randn(2, 3, 5).double()
    weight = torch.randn(5, 1, 4).double()
    bias = torch.randn(5).double() if biased else None
    inputs = torch.cat([tail, x], dim=1)
    expected = conv1d(inputs.transpose(1, 2), weight, bias, groups=5).transpose(1, 2)
    y, new_tail = reference(x, weight, bias, tail, activation=activation)
    torch.testing.assert_close(y, silu(expected) if activation else expected)
    assert torch.equal(new_tail, inputs[:, -3:])


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(device: str, dtype: torch.dtype, length: int) -> None:
    x = torch.randn(2, length, 70, device=device).to(dtype)
    tail = torch.randn(2, 3, 70, device=device).to(dtype)
    weight, bias = torch.randn(70, 1, 4, device=device), torch.randn(70, device=device)
    _check(x, weight, bias, tail, "silu")


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("tailed", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_optional_arguments(
    device: str, biased: bool, tailed: bool, activation: Activation, taps: int
) -> None:
    x = torch.randn(2, 5, 24, device=device)
    weight = torch.randn(24, 1, taps, device=device)
    bias = torch.randn(24, device=device) if biased else None
    tail = torch.randn(2, taps - 1, 24, device=device) if tailed else None
    _check(x, weight, bias, tail, activation)


@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str) -> None:
    both = torch.randn(2, 9, 140, device=device)
    weight = torch.randn(4, 70, device=device).t()[:, None, :]
    tail = torch.randn(2, 70, 3, device=device).transpose(1, 2)
    _check(both[..., 70:], weight, torch.randn(140, device=device)[::2], tail, None)
    _check(both.transpose(1, 2)[:, :70, :9], weight[:9], None, tail[..., :9], None)


@pytest.mark.parametrize("cuts", [[1] * 20, [3, 1, 9, 7], [2, 18]], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_one_pass(device: str, cuts: list[int]) -> None:
    x = torch.randn(1, 20, 24, device=device)
    weight = torch.randn(24, 1, 4, device=device)
    tail = None
    outputs = []
    with override("causal_conv", "triton"):
        for part in torch.split(x, cuts, dim=1):
            y, tail = causal_conv(part, weight, None, tail)
            outputs.append(y)
        whole, whole_tail = causal_conv(x, weight)
    assert_close("causal_conv", torch.cat(outputs, dim=1), whole)
    assert tail is not None
    assert torch.equal(tail, whole_tail)
