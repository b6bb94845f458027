"""Linear layer and convolution of one token: the fused launch against its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.donation import states_donated
from longspan.kernels.linear_conv import linear_conv
from longspan.kernels.linear_conv.reference import linear_conv as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, wide
from tests.kernels.quantized import PACKINGS, stored
from tests.tolerances import assert_close

OP = "linear_conv"
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
    stored: torch.dtype | None = None,
) -> dict[str, Any]:
    """Arguments as a layer has them: the weights in the dtype given, or as they are stored."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(stored or dtype)

    outputs = first + E + last
    return {
        "x": torch.randn(1, length, width, device=device).to(dtype),
        "weight": (torch.randn(outputs, width, device=device) * width**-0.5).to(stored or dtype),
        "bias": random(outputs) if biased else None,
        "conv_weight": random(E, 1, taps),
        "conv_bias": random(E) if biased else None,
        "tail": random(1, taps - 1, E),
        "first": first,
    }


def in_float64(given: dict[str, Any]) -> Tensors:
    """The reference in float64."""
    return reference(**wide(given))


def check(given: dict[str, Any]) -> Tensors:
    """Compare the kernel with the reference, each result by itself."""
    expected = in_float64(given)
    with override(OP, "triton"):
        found = linear_conv(**given)
    for part, wanted in zip(found[:3], expected[:3], strict=True):
        assert part.dtype == given["x"].dtype
        assert_close(OP, part, wanted)
    tail = found[3]
    assert tail.is_contiguous()
    assert tail.dtype == given["tail"].dtype
    assert torch.equal(tail[:, :-1], given["tail"][:, 1:])
    assert_close(OP, tail, expected[3])
    return found


@pytest.mark.parametrize("width", [1, 70, 2560])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(device: str, dtype: torch.dtype, width: int) -> None:
    check(arguments(device, dtype, width=width))


@pytest.mark.parametrize("width", [70, 1000])
@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_a_packed_weight(
    device: str, dtype: torch.dtype, bits: int, block: int, symmetric: bool, width: int
) -> None:
    matrix = stored(
        F + E + LAST, width, bits=bits, block=block, symmetric=symmetric, device=device, dtype=dtype
    )
    check(arguments(device, dtype, width=width) | matrix.named)


@pytest.mark.parametrize("taps", [1, 2, 4, 7])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 26), (9, 0), (1, 3)])
@pytest.mark.parametrize("device", DEVICES)
def test_parts(device: str, first: int, last: int, taps: int) -> None:
    given = arguments(device, torch.float32, first=first, last=last, taps=taps)
    before, u, after, _ = check(given)
    assert [each.shape[2] for each in (before, u, after)] == [first, E, last]


@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_no_bias(device: str, dtype: torch.dtype) -> None:
    check(arguments(device, dtype, biased=False))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_weights_narrower_than_what_is_computed(device: str, stored: torch.dtype) -> None:
    """What goes into the convolution is rounded as the tail is."""
    if device == "cpu" and stored == torch.bfloat16:
        pytest.skip("the interpreter truncates where CUDA rounds to bfloat16")
    given = arguments(device, torch.float32, stored=stored)
    with override(OP, "triton"):
        tail = linear_conv(**given)[3]
    expected = reference(**given)[3]
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
@pytest.mark.parametrize("packed", [False, True], ids=["floats", "packed"])
def test_of_several_tokens_it_is_the_ops_one_after_another(device: str, packed: bool) -> None:
    given = arguments(device, torch.float32, length=5)
    if packed:
        given |= stored(40, D, bits=4, block=32, symmetric=False, device=device).named
    expected = in_float64(given)
    with override(OP, "triton"):
        found = linear_conv(**given)
    for each, wanted in zip(found, expected, strict=True):
        assert_close(OP, each, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_a_tail_that_was_given_away_is_overwritten(device: str) -> None:
    given = arguments(device, torch.float32)
    with override(OP, "triton"):
        expected = linear_conv(**given)
        with states_donated():
            found = linear_conv(**given)
    assert found[3] is given["tail"]
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
        ({"bits": 4}, "bits is 4, but scales is None; each block has a scale"),
        (
            {"scales": torch.zeros(40, 3)},
            "scales or zeros are given, but bits is None; they belong to a weight of 8 or 4 bits",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^linear_conv: {message}$"):
        linear_conv(**(arguments("cpu", torch.float32) | changes))
