"""Linear layer of one row: the Triton kernel against the reference, and when it is chosen."""

from __future__ import annotations

import pytest
import torch

from longspan.kernels import choose, override
from longspan.kernels.linear import linear, triton_rows
from longspan.kernels.linear.reference import linear as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, widen
from tests.tolerances import assert_close


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compare with the reference in float64, of a weight in the dtype of x."""
    expected = reference(
        x.double(), weight.to(x.dtype).double(), widen(None if bias is None else bias.to(x.dtype))
    )
    with override("linear", "triton"):
        y = linear(x, weight, bias)
    assert (y.dtype, y.shape) == (x.dtype, (*x.shape[:-1], weight.shape[0]))
    assert_close("linear", y, expected)
    return y


def test_reference_is_the_equation() -> None:
    x, weight = torch.randn(2, 3, 5), torch.randn(7, 5)
    bias = torch.randn(7)
    torch.testing.assert_close(reference(x, weight, None), x @ weight.T)
    torch.testing.assert_close(reference(x, weight, bias), x @ weight.T + bias)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("outputs", "width"),
    [(1, 1), (7, 63), (64, 64), (9, 2049), (3, 5120)],
)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(device: str, dtype: torch.dtype, outputs: int, width: int, biased: bool) -> None:
    x = torch.randn(1, 1, width, device=device).to(dtype)
    weight = (torch.randn(outputs, width, device=device) * width**-0.5).to(dtype)
    bias = torch.randn(outputs, device=device).to(dtype) if biased else None
    _check(x, weight, bias)


@pytest.mark.parametrize("programs", [1, 4, 10_000])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_outputs_of_a_program(
    device: str, dtype: torch.dtype, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_rows, "MIN_PROGRAMS", programs)
    x = torch.randn(1, 2400, device=device).to(dtype)
    _check(x, (torch.randn(21, 2400, device=device) / 49).to(dtype))


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 5)], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_several_rows(device: str, shape: tuple[int, ...]) -> None:
    _check(torch.randn(*shape, 40, device=device), torch.randn(21, 40, device=device) / 8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("view", ["half of a split", "strided", "rows of a wider one"])
def test_views(device: str, view: str) -> None:
    x, weight = torch.randn(2, 1, 140, device=device), torch.randn(30, 140, device=device) / 8
    views = {
        "half of a split": (x[..., 70:], weight[:, :70]),
        "strided": (x[..., ::2], weight[:, ::2]),
        "rows of a wider one": (x[1:, :, 3:73], weight[::3, 1:71]),
    }
    _check(*views[view])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16], ids=str)
def test_a_weight_of_another_dtype_is_cast(device: str, stored: torch.dtype) -> None:
    x = torch.randn(1, 70, device=device)
    x = x.half() if stored == torch.float32 else x
    weight, bias = torch.randn(30, 70, device=device) / 8, torch.randn(30, device=device)
    _check(x, weight.to(stored), bias.to(stored))


@pytest.mark.parametrize("device", DEVICES)
def test_a_sum_has_one_order(device: str) -> None:
    x, weight = torch.randn(1, 300, device=device), torch.randn(10, 300, device=device) / 17
    assert torch.equal(_check(x, weight), _check(x.clone(), weight.clone()))


@pytest.mark.gpu
def test_a_weight_beyond_2_31_elements() -> None:
    """Zeros but for its last rows; 4 GiB."""
    weight = torch.zeros(2**31 // 4096 + 100, 4096, dtype=torch.bfloat16, device="cuda")
    weight[-100:] = torch.randn(100, 4096, device="cuda") / 64
    x = torch.randn(1, 4096, device="cuda").bfloat16()
    with override("linear", "triton"):
        y = linear(x, weight)
    assert not y[:, :-100].any()
    assert_close("linear", y[:, -100:], x.double() @ weight[-100:].double().T)


def test_the_choice_is_by_rows() -> None:
    one = choose("linear", device_type="cuda", exporting=False, rows=1)
    assert one.name == "triton"
    assert one.reason == "x has one row; of others: torch's own matrix product"
    for rows in (0, 2, 4096):
        several = choose("linear", device_type="cuda", exporting=False, rows=rows)
        assert several.name == "reference"
        assert several.reason == "x has not one row: torch's own matrix product"
    assert choose("linear", device_type="cpu", exporting=False, rows=1).name == "reference"
    assert choose("linear", device_type="cuda", exporting=True, rows=1).name == "onnx"


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2])
def test_what_is_called_on_cuda(rows: int) -> None:
    """In float32 the two sum in different orders, so that their bits tell which it was."""
    x, weight = torch.randn(rows, 5120, device="cuda"), torch.randn(512, 5120, device="cuda")
    found = linear(x, weight)
    with override("linear", "triton"):
        assert torch.equal(found, linear(x, weight)) == (rows == 1)
    with override("linear", "reference"):
        assert torch.equal(found, linear(x, weight)) == (rows != 1)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        ((2, 3), None, r"weight has shape \[2, 3\]; it must be \[any, 4\]"),
        ((2, 4), (3,), r"bias has shape \[3\]; it must be \[2\]"),
    ],
)
def test_what_does_not_fit(
    weight: tuple[int, ...], bias: tuple[int, ...] | None, message: str
) -> None:
    biases = None if bias is None else torch.zeros(bias)
    with pytest.raises(ValueError, match=f"^linear: {message}$"):
        linear(torch.zeros(1, 4), torch.zeros(weight), biases)


@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_a_result_in_given_memory(device: str, dtype: torch.dtype, implementation: str) -> None:
    x = torch.randn(1, 1, 70, device=device, dtype=dtype)
    weight = torch.randn(33, 70, device=device, dtype=dtype)
    out = torch.empty(1, 1, 33, device=device)
    with override("linear", implementation):
        assert linear(x, weight, out=out) is out
        assert torch.equal(out, linear(x, weight).float())


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(1, 3), r"out has shape \[1, 3\]; it must be \[1, 2\]"),
        (
            torch.zeros(1, 2, dtype=torch.float16),
            r"out is of torch.float16, its strides are \[2, 1\]; it must be contiguous float32",
        ),
        (
            torch.zeros(1, 4)[:, ::2],
            r"out is of torch.float32, its strides are \[4, 2\]; it must be contiguous float32",
        ),
    ],
)
def test_memory_that_does_not_fit(out: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^linear: {message}$"):
        linear(torch.zeros(1, 4), torch.zeros(2, 4), out=out)
