"""Norms whose division a product takes over: the fused launches against float64, and the rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.add_norm.reference import add_norm
from longspan.kernels.deferred_norm import DeferredNorm, NextNorm, defers_norms
from longspan.kernels.linear_conv import linear_conv
from longspan.kernels.linear_conv.reference import linear_conv as linear_conv_reference
from longspan.kernels.ssd_norm_linear import ssd_norm_linear
from longspan.kernels.ssd_norm_linear.reference import ssd_norm_linear as ssd_reference
from tests.kernels import test_linear_conv, test_ssd_norm_linear
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, wide
from tests.kernels.layer_pairs import LayerPair
from tests.kernels.quantized import PACKINGS, stored
from tests.tolerances import assert_close

EPS = 1e-5
FLOATS = (16, 0, True)
OUTPUTS = test_ssd_norm_linear.OUT


def deferred(
    device: str, dtype: torch.dtype, width: int, parts: int, length: int = 1
) -> DeferredNorm:
    """A row, and squares in so many parts, of which the last may be empty."""
    s = torch.randn(1, length, width, device=device) * 3
    weight = torch.rand(width, device=device) + 0.5
    squares = torch.zeros(1, length, parts, device=device)
    squares.index_add_(2, torch.arange(width, device=device) % parts, s.square())
    return DeferredNorm(row=(s * weight).to(dtype), squares=squares, eps=EPS)


def in_float64(norm: DeferredNorm) -> DeferredNorm:
    return replace(norm, row=norm.row.double(), squares=norm.squares.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_norm(dtype: torch.dtype) -> None:
    """Of a sum of residual and result, as `add_norm` has it."""
    x, y, weight = (torch.randn(*shape, dtype=dtype) for shape in ((2, 3, 40), (2, 3, 40), (40,)))
    total, normed = NextNorm(residual=x, weight=weight, eps=EPS).add(y)
    expected = add_norm(x, y, weight, None, kind="rms", eps=EPS, dtype=dtype)
    assert torch.equal(total, expected[0])
    torch.testing.assert_close(normed.row * normed.root(), expected[1])


@pytest.mark.parametrize("parts", [9, 80])
@pytest.mark.parametrize(("bits", "block", "symmetric"), [FLOATS, *PACKINGS])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_a_linear_layer_divides(
    device: str, dtype: torch.dtype, bits: int, block: int, symmetric: bool, parts: int
) -> None:
    given = test_linear_conv.arguments(device, dtype)
    outputs, width = given["weight"].shape
    if bits != 16:
        given |= stored(
            outputs, width, bits=bits, block=block, symmetric=symmetric, device=device, dtype=dtype
        ).named
    x = deferred(device, dtype, width, parts)
    expected = linear_conv_reference(**wide(given) | {"x": in_float64(x)})
    with override("linear_conv", "triton"):
        found = linear_conv(**given | {"x": x})
    for part, wanted in zip(found, expected, strict=True):
        assert part.dtype == dtype
        assert_close("linear_conv", part, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_several_rows_are_divided(device: str) -> None:
    given = test_linear_conv.arguments(device, torch.float32)
    x = deferred(device, torch.float32, given["weight"].shape[1], 3, length=4)
    expected = linear_conv_reference(**wide(given) | {"x": in_float64(x)})
    with override("linear_conv", "triton"):
        found = linear_conv(**given | {"x": x})
    for part, wanted in zip(found, expected, strict=True):
        assert_close("linear_conv", part, wanted)


@pytest.mark.parametrize(
    ("heads", "width", "groups", "length"), [(6, 10, 2, 1), (6, 33, 1, 1), (6, 10, 1, 3)]
)
@pytest.mark.parametrize(("bits", "block", "symmetric"), [FLOATS, *PACKINGS])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_a_layer_adds_and_leaves_a_norm(
    device: str,
    dtype: torch.dtype,
    bits: int,
    block: int,
    symmetric: bool,
    heads: int,
    width: int,
    groups: int,
    length: int,
) -> None:
    given = test_ssd_norm_linear.arguments(
        device, dtype, heads=heads, width=width, groups=groups, length=length
    )
    if bits != 16:
        given |= stored(
            OUTPUTS, heads * width, bits=bits, block=block, symmetric=symmetric,
            device=device, dtype=dtype,
        ).named  # fmt: skip
    residual = torch.randn(1, length, OUTPUTS, device=device)
    weight = (torch.rand(OUTPUTS, device=device) + 0.5).to(dtype)
    then = NextNorm(residual=residual.double(), weight=weight.double(), eps=EPS)
    limit = (0.0, float("inf"))
    added, expected_state = ssd_reference(**{"dt_limit": limit, **wide(given), "then": then})
    assert not isinstance(added, torch.Tensor)
    before = residual.clone()
    with override("ssd_norm_linear", "triton"):
        given["then"] = NextNorm(residual=residual, weight=weight, eps=EPS)
        (total, normed), state = ssd_norm_linear(**given)
    assert (total.dtype, normed.row.dtype) == (torch.float32, dtype)
    # In the residual's place, and nothing but what was added differs from it.
    if length == 1:
        assert total.data_ptr() == residual.data_ptr()
    assert_close("ssd_norm_linear", (total - before).to(dtype), added[0] - before.double())
    assert_close("ssd_norm_linear", normed.row, total.double() * weight.double())
    torch.testing.assert_close(normed.squares.sum(-1), total.square().sum(-1))
    assert_close("ssd", state, expected_state)


@pytest.mark.parametrize(("heads", "width", "outputs"), [(4, 16, 96), (2, 64, 32), (6, 10, 160)])
@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_a_layer_after_a_layer(
    device: str,
    dtype: torch.dtype,
    bits: int,
    block: int,
    symmetric: bool,
    heads: int,
    width: int,
    outputs: int,
) -> None:
    """On tensor cores the row between them is laid out, in groups of 8 numbers of 8 bits.

    Programs of 8 outputs have no whole group of 4 bits, and those of heads of 10 channels none.
    """
    packing = {"bits": bits, "block": block, "symmetric": symmetric}
    pair = LayerPair.random(device, dtype, heads=heads, width=width, outputs=outputs, **packing)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    laid_out = device == "cuda" and dtype == torch.bfloat16 and bits == 8
    pair.check(laid_out=laid_out, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
def test_a_wide_layer_after_a_wide_layer(bits: int, block: int, symmetric: bool) -> None:
    """Wide enough for programs of 16 outputs."""
    pair = LayerPair.random(
        "cuda", torch.bfloat16, heads=40, width=64, outputs=2080,
        bits=bits, block=block, symmetric=symmetric,
    )  # fmt: skip
    pair.check(laid_out=True, rtol=2e-2, atol=2e-2)


def test_which_norms_are_deferred() -> None:
    row, rows = torch.zeros(1, 1, 4), torch.zeros(1, 2, 4)
    assert not defers_norms(row, torch.float32)
    with override("linear_conv", "triton"), override("ssd_norm_linear", "triton"):
        assert defers_norms(row, torch.float32)
        assert defers_norms(row, torch.bfloat16)
        # As large as the residual, which may be more than float16 holds.
        assert not defers_norms(row, torch.float16)
        assert not defers_norms(rows, torch.float32)
        with override("linear_conv", "reference"):
            assert not defers_norms(row, torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"residual": torch.zeros(1, 1, 3)},
            r"residual has shape \[1, 1, 3\]; it must be \[1, 1, 21\]",
        ),
        (
            {"weight": torch.zeros(3)},
            r"weight of the next norm has shape \[3\]; it must be \[21\]",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    then = NextNorm(residual=torch.zeros(1, 1, OUTPUTS), weight=torch.zeros(OUTPUTS), eps=EPS)
    given = test_ssd_norm_linear.arguments("cpu", torch.float32)
    with pytest.raises(ValueError, match=f"^ssd_norm_linear: {message}$"):
        ssd_norm_linear(**given, then=replace(then, **changes))
