"""SiLU gate: the reference against torch, the Triton kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from longspan.kernels import override
from longspan.kernels.choice import Name
from longspan.kernels.swiglu import swiglu
from longspan.kernels.swiglu.reference import swiglu as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES
from tests.tolerances import assert_close


def _check(gate: torch.Tensor, x: torch.Tensor) -> None:
    with override("swiglu", "triton"):
        y = swiglu(gate, x)
    assert y.dtype == x.dtype
    assert_close("swiglu", y, reference(gate.double(), x.double()))


def test_reference_is_torchs() -> None:
    gate, x = torch.randn(2, 3, 5, 100, dtype=torch.float64)
    torch.testing.assert_close(reference(gate, x), silu(gate) * x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_reference_rounds_once(dtype: torch.dtype) -> None:
    gate, x = torch.randn(2, 3, 5, 100).to(dtype)
    assert torch.equal(reference(gate, x), (silu(gate.double()) * x.double()).to(dtype))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 24), (65, 100), (1, 1, 2500)], ids=str)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    gate, x = torch.randn(2, *shape, device=device).mul(4).to(dtype)
    _check(gate, x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("view", ["halves of a split", "transposed"])
def test_views(device: str, view: str) -> None:
    both = torch.randn(2, 7, 140, device=device)
    gate, x = both.chunk(2, dim=-1)
    if view == "transposed":
        gate, x = gate.transpose(1, 2), x.transpose(1, 2)
    _check(gate, x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_the_result_may_take_the_gates_place(device: str, name: Name) -> None:
    both = torch.randn(2, 7, 140, device=device)
    gate, x = both.chunk(2, dim=-1)
    expected, after = reference(gate, x), x.clone()
    with override("swiglu", name):
        y = swiglu(gate, x, overwrite=True)
    assert_close("swiglu", y, expected)
    assert (y.data_ptr() == both.data_ptr()) == (name == "triton")
    assert torch.equal(x, after)


@pytest.mark.parametrize("device", DEVICES)
def test_a_result_of_another_dtype_takes_no_place(device: str) -> None:
    gate, x = torch.randn(2, 3, 4, device=device)
    x = x.to(torch.float16)
    before = gate.clone()
    with override("swiglu", "triton"):
        assert swiglu(gate, x, overwrite=True).dtype == x.dtype
    assert torch.equal(gate, before)


@pytest.mark.parametrize("device", DEVICES)
def test_large_gates(device: str) -> None:
    # The interpreter warns of exponentials beyond float32, which are infinite and right.
    most = 1e4 if device == "cuda" else 80.0
    gate = torch.tensor([-most, -50.0, 0.0, 50.0, most], device=device)
    _check(gate, torch.ones(5, device=device))


def test_what_does_not_fit() -> None:
    message = r"^swiglu: gate has shape \[3, 4\]; it must be \[3, 5\]$"
    with pytest.raises(ValueError, match=message):
        swiglu(torch.zeros(3, 4), torch.zeros(3, 5))
