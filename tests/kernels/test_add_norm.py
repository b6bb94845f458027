"""Sum and norm: the reference against torch, the Triton kernel against the reference."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.nn.functional import layer_norm, rms_norm

from longspan.kernels import override
from longspan.kernels.add_norm import add_norm
from longspan.kernels.add_norm.reference import add_norm as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, widen
from tests.tolerances import assert_close

Kind = Literal["rms", "layer"]
KINDS: tuple[Kind, ...] = ("rms", "layer")


def _check(
    x: torch.Tensor,
    y: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    kind: Kind,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare with the reference; the sum, rounded to the dtype of x, must be exact."""
    expected_sum = x if y is None else x + y.to(x.dtype)
    _, expected = reference(
        expected_sum.double(), None, weight.double(), widen(bias),
        kind=kind, eps=1e-5, dtype=torch.float64,
    )  # fmt: skip
    with override("add_norm", "triton"):
        total, normed = add_norm(x, y, weight, bias, kind=kind, eps=1e-5, dtype=dtype)
    assert torch.equal(total, expected_sum)
    assert normed.dtype == (dtype or x.dtype)
    assert_close("add_norm", normed, expected)
    return total, normed


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_reference_is_torchs(kind: Kind, added: bool) -> None:
    x = torch.randn(3, 5, 100, dtype=torch.float64)
    y = torch.randn(3, 5, 100, dtype=torch.float64) if added else None
    weight, bias = torch.randn(2, 100, dtype=torch.float64)
    total, normed = reference(x, y, weight, bias, kind=kind, eps=1e-5, dtype=torch.float64)
    s = x if y is None else x + y
    assert torch.equal(total, s)
    expected = (
        layer_norm(s, (100,), weight, bias, 1e-5)
        if kind == "layer"
        else rms_norm(s, (100,), weight, 1e-5) + bias
    )
    torch.testing.assert_close(normed, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 63, 24), (65, 100), (1, 3, 2560), (1, 3, 4097)], ids=str
)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], biased: bool, added: bool, kind: Kind
) -> None:
    x = torch.randn(shape, device=device)
    y = torch.randn(shape, device=device).to(dtype) if added else None
    weight = torch.randn(shape[-1], device=device).to(dtype)
    bias = torch.randn(shape[-1], device=device).to(dtype) if biased else None
    _check(x, y, weight, bias, kind=kind, dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_a_narrow_residual_is_normalised_as_rounded(
    device: str, dtype: torch.dtype, kind: Kind
) -> None:
    x, y = torch.randn(2, 2, 7, 40, device=device).to(dtype)
    _check(x, y.float(), torch.randn(40, device=device), None, kind=kind)


@pytest.mark.parametrize("device", DEVICES)
def test_the_sum_takes_the_place_of_x(device: str) -> None:
    x, y = torch.randn(2, 1, 7, 40, device=device)
    total, _ = _check(x, y, torch.ones(40, device=device), None, kind="rms")
    assert total.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("view", ["the last row", "half of a split", "transposed", "expanded"])
def test_views(device: str, view: str) -> None:
    weight = torch.randn(70, device=device)
    base, other = torch.randn(2, 2, 7, 140, device=device)
    views = {
        "the last row": lambda u: u[:, -1:, :70],
        "half of a split": lambda u: u[..., 70:],
        "transposed": lambda u: u[..., :70].transpose(1, 2).contiguous().transpose(1, 2),
        "expanded": lambda u: u[:, :1, :70].expand(2, 7, 70),
    }
    _check(views[view](base), views[view](other), weight, None, kind="rms")


@pytest.mark.parametrize("device", DEVICES)
def test_too_wide(device: str) -> None:
    x = torch.zeros(1, 65_537, device=device)
    with override("add_norm", "triton"), pytest.raises(ValueError, match="65536 at most"):
        add_norm(x, None, x[0], kind="rms", eps=1e-5)


@pytest.mark.parametrize(
    ("y", "weight", "bias", "message"),
    [
        ((2, 4), (4,), None, r"y has shape \[2, 4\]; it must be \[3, 4\]"),
        ((3, 4), (3,), None, r"weight has shape \[3\]; it must be \[4\]"),
        ((3, 4), (4,), (1,), r"bias has shape \[1\]; it must be \[4\]"),
    ],
)
def test_what_does_not_fit(
    y: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None, message: str
) -> None:
    biases = None if bias is None else torch.zeros(bias)
    with pytest.raises(ValueError, match=f"^add_norm: {message}$"):
        add_norm(
            torch.zeros(3, 4), torch.zeros(y), torch.zeros(weight), biases, kind="rms", eps=1e-5
        )
