"""Sum, norm, linear layer and convolution of one token: the fused launch against its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.donation import states_donated
from longspan.kernels.norm_linear_conv import AddNorm, norm_linear_conv, triton_kernel
from longspan.kernels.norm_linear_conv.reference import norm_linear_conv as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, widen
from tests.tolerances import assert_close

OP = "norm_linear_conv"
D, F, E, LAST, K = 70, 9, 26, 5, 4
Tensors = tuple[torch.Tensor, ...]


def arguments(
    device: str,
    dtype: torch.dtype,
    *,
    width: int = D,
    first: int = F,
    last: int = LAST,
    taps: int = K,
    length: int = 1,
    biased: bool = True,
    added: bool = True,
    normed: bool = True,
    stored: torch.dtype | None = None,
) -> dict[str, Any]:
    """Arguments as a layer has them: a float32 residual, everything else in the dtype given."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(stored or dtype)

    outputs = first + E + last
    x = torch.randn(1, length, width, device=device)
    y = torch.randn(1, length, width, device=device).to(dtype) if added else None
    norm = AddNorm(y=y, weight=random(width), eps=1e-5, dtype=dtype) if normed else None
    return {
        "x": x if normed else x.to(dtype),
        "weight": (torch.randn(outputs, width, device=device) * width**-0.5).to(stored or dtype),
        "bias": random(outputs) if biased else None,
        "conv_weight": random(E, 1, taps),
        "conv_bias": random(E) if biased else None,
        "tail": random(1, taps - 1, E),
        "first": first,
        "norm": norm,
    }


def in_float64(given: dict[str, Any]) -> Tensors:
    """The reference in float64, rounding where one token's path does: the norm, and p."""
    norm = given["norm"]
    dtype = given["x"].dtype if norm is None else norm.dtype
    wide = {name: widen(each) if torch.is_tensor(each) else each for name, each in given.items()}
    wide["weight"] = given["weight"].to(dtype).double()
    if norm is not None:
        wide["norm"] = AddNorm(
            y=widen(norm.y), weight=norm.weight.double(), eps=norm.eps, dtype=torch.float64
        )
    return reference(**wide)


def check(given: dict[str, Any]) -> Tensors:
    """Compare the kernel with the reference, each result by itself."""
    expected = in_float64(given)
    dtype = given["x"].dtype if given["norm"] is None else given["norm"].dtype
    x = given["x"].clone()
    with override(OP, "triton"):
        found = norm_linear_conv(**given)
    total, before, u, after, tail = found
    assert torch.equal(given["x"], x) or given["x"].shape[1] > 1
    assert total.dtype == given["x"].dtype
    torch.testing.assert_close(total.double(), expected[0], rtol=1e-6, atol=1e-6)
    for part, wanted in zip((before, u, after), expected[1:4], strict=True):
        assert part.dtype == dtype
        assert_close(OP, part, wanted)
    assert tail.is_contiguous()
    assert tail.dtype == given["tail"].dtype
    assert torch.equal(tail[:, :-1], given["tail"][:, 1:])
    assert_close(OP, tail, expected[4])
    return found


@pytest.mark.parametrize("width", [1, 70, 2560])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(device: str, dtype: torch.dtype, width: int) -> None:
    check(arguments(device, dtype, width=width))


@pytest.mark.parametrize("taps", [1, 2, 4, 7])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 26), (9, 0), (1, 3)])
@pytest.mark.parametrize("device", DEVICES)
def test_parts(device: str, first: int, last: int, taps: int) -> None:
    given = arguments(device, torch.float32, first=first, last=last, taps=taps)
    _, before, u, after, _ = check(given)
    assert [each.shape[2] for each in (before, u, after)] == [first, E, last]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("added", "normed"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_optional_arguments(
    device: str, dtype: torch.dtype, added: bool, normed: bool, biased: bool
) -> None:
    given = arguments(device, dtype, added=added, normed=normed, biased=biased)
    total = check(given)[0]
    assert (total is given["x"]) == (not added)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_weights_narrower_than_what_is_computed(device: str, stored: torch.dtype) -> None:
    """What goes into the convolution is rounded as the tail is."""
    if device == "cpu" and stored == torch.bfloat16:
        pytest.skip("the interpreter truncates where CUDA rounds to bfloat16")
    given = arguments(device, torch.float32, stored=stored)
    with override(OP, "triton"):
        _, _, _, _, tail = norm_linear_conv(**given)
    expected = reference(**given)[4]
    assert tail.dtype == stored
    assert_close(OP, tail, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str) -> None:
    given = arguments(device, torch.float32)
    wide = torch.randn(F + E + LAST, 2 * D, device=device)
    for weight in (wide[:, D:], wide[:, ::2]):
        given["weight"] = weight
        given["conv_weight"] = torch.randn(K, E, device=device).t()[:, None, :]
        given["tail"] = torch.randn(1, E, K - 1, device=device).transpose(1, 2)
        given["x"] = torch.randn(1, 1, 2 * D, device=device)[..., ::2]
        check(given)


@pytest.mark.parametrize("device", DEVICES)
def test_of_several_tokens_it_is_the_ops_one_after_another(device: str) -> None:
    check_all = arguments(device, torch.float32, length=5)
    expected = in_float64(check_all)
    with override(OP, "triton"):
        found = norm_linear_conv(**check_all)
    for each, wanted in zip(found, expected, strict=True):
        assert_close(OP, each, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_wider_than_registers_is_left_to_the_ops(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(triton_kernel, "MAX_WIDTH", D - 1)
    monkeypatch.setattr(triton_kernel, "one_after_another", lambda *a, **k: called.append(a))
    given = arguments(device, torch.float32)
    with override(OP, "triton"):
        norm_linear_conv(**given)
        assert len(called) == 1
        monkeypatch.setattr(triton_kernel, "MAX_WIDTH", D)
        norm_linear_conv(**given)
    assert len(called) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_a_tail_that_was_given_away_is_overwritten(device: str) -> None:
    given = arguments(device, torch.float32)
    with override(OP, "triton"):
        expected = norm_linear_conv(**given)
        with states_donated():
            found = norm_linear_conv(**given)
    assert found[4] is given["tail"]
    for each, wanted in zip(found, expected, strict=True):
        assert torch.equal(each, wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(40, 3)}, r"weight has shape \[40, 3\]; it must be \[any, 70\]"),
        ({"bias": torch.zeros(3)}, r"bias has shape \[3\]; it must be \[40\]"),
        (
            {"conv_weight": torch.zeros(E, 4)},
            r"conv_weight has shape \[26, 4\]; it must be \[26, 1, any\]",
        ),
        ({"conv_bias": torch.zeros(3)}, r"conv_bias has shape \[3\]; it must be \[26\]"),
        ({"tail": torch.zeros(1, 4, E)}, r"tail has shape \[1, 4, 26\]; it must be \[1, 3, 26\]"),
        (
            {"first": 15},
            "first is 15; 26 channels of 40 are convolved, so it must be from 0 to 14",
        ),
        (
            {"norm": AddNorm(y=None, weight=torch.zeros(3), eps=1e-5, dtype=torch.float32)},
            r"norm.weight has shape \[3\]; it must be \[70\]",
        ),
        (
            {
                "norm": AddNorm(
                    y=torch.zeros(1, 2, D), weight=torch.zeros(D), eps=1e-5, dtype=torch.float32
                )
            },
            r"norm.y has shape \[1, 2, 70\]; it must be \[1, 1, 70\]",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^norm_linear_conv: {message}$"):
        norm_linear_conv(**(arguments("cpu", torch.float32) | changes))
