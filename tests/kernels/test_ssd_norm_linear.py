"""The dual, gated norm and linear layer of one token: the two launches against their parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.donation import states_donated
from longspan.kernels.ssd_norm_linear import ssd_norm_linear
from longspan.kernels.ssd_norm_linear.reference import ssd_norm_linear as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, wide
from tests.kernels.quantized import PACKINGS, stored
from tests.tolerances import assert_close

OP = "ssd_norm_linear"
OUT, EPS = 21, 1e-5


def arguments(
    device: str,
    dtype: torch.dtype,
    *,
    heads: int = 6,
    width: int = 10,
    groups: int = 2,
    states: int = 12,
    length: int = 1,
    optional: bool = True,
    stored: torch.dtype | None = None,
) -> dict[str, Any]:
    """Arguments as a mixer has them: z, x, B, C and dt are views of one tensor."""
    inner, keys = heads * width, groups * states
    row = torch.randn(1, length, 2 * inner + 2 * keys + heads, device=device).to(dtype)
    z, x, B, C, dt = row.split([inner, inner, keys, keys, heads], dim=-1)
    weight = torch.randn(OUT, inner, device=device) * inner**-0.5
    return {
        "x": x.view(1, length, heads, width),
        "dt": dt,
        "A": -torch.rand(heads, device=device) * 4,
        "B": B.view(1, length, groups, states),
        "C": C.view(1, length, groups, states),
        "z": z,
        "norm_weight": (torch.rand(inner, device=device) + 0.5).to(stored or dtype),
        "weight": weight.to(stored or dtype),
        "bias": torch.randn(OUT, device=device).to(stored or dtype) if optional else None,
        "eps": EPS,
        "D": torch.randn(heads, device=device) if optional else None,
        "dt_bias": torch.randn(heads, device=device) if optional else None,
        "state": torch.randn(1, heads, states, width, device=device),
    }


def in_float64(given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference in float64."""
    arguments = wide(given)
    if "bits" not in given:
        arguments["weight"] = given["weight"].to(given["x"].dtype).double()
    return reference(**{"dt_limit": (0.0, float("inf")), **arguments})


def check(given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare the kernels with the reference, the state by the tolerance of the dual's."""
    expected, expected_state = in_float64(given)
    before = given["state"].clone()
    with override(OP, "triton"):
        found, state = ssd_norm_linear(**given)
    assert found.dtype == given["x"].dtype
    assert_close(OP, found, expected)
    assert_close("ssd", state, expected_state)
    assert torch.equal(given["state"], before)
    return found, state


@pytest.mark.parametrize(
    ("heads", "width", "groups", "states"),
    [(1, 1, 1, 1), (6, 10, 2, 12), (6, 40, 3, 7), (4, 64, 1, 128), (24, 33, 8, 16)],
)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(
    device: str, dtype: torch.dtype, heads: int, width: int, groups: int, states: int
) -> None:
    check(arguments(device, dtype, heads=heads, width=width, groups=groups, states=states))


@pytest.mark.parametrize(("heads", "width", "groups"), [(6, 10, 2), (6, 33, 3), (16, 64, 1)])
@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_a_packed_weight(
    device: str,
    dtype: torch.dtype,
    bits: int,
    block: int,
    symmetric: bool,
    heads: int,
    width: int,
    groups: int,
) -> None:
    matrix = stored(
        OUT, heads * width, bits=bits, block=block, symmetric=symmetric, device=device, dtype=dtype
    )
    given = arguments(device, dtype, heads=heads, width=width, groups=groups)
    check(given | matrix.named)


@pytest.mark.parametrize("device", DEVICES)
def test_optional_arguments_left_out(device: str) -> None:
    check(arguments(device, torch.float32, optional=False))


@pytest.mark.parametrize("device", DEVICES)
def test_steps_within_a_range_and_a_skip_for_each_channel(device: str) -> None:
    given = arguments(device, torch.float32)
    check(given | {"dt_limit": (0.2, 0.4), "D": torch.randn(6, 10, device=device)})


@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str) -> None:
    given = arguments(device, torch.float32)
    wide = torch.randn(OUT, 120, device=device) / 8
    for weight in (wide[:, 60:], wide[:, ::2]):
        z = torch.randn(1, 1, 120, device=device)[..., ::2]
        check(given | {"weight": weight, "z": z})


@pytest.mark.parametrize("device", DEVICES)
def test_weights_narrower_than_what_is_computed(device: str) -> None:
    check(arguments(device, torch.float32, stored=torch.float16))


@pytest.mark.parametrize("shape", [(1, 5), (2, 1)], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_of_several_tokens_it_is_the_ops_one_after_another(
    device: str, shape: tuple[int, int]
) -> None:
    batch, length = shape
    given = arguments(device, torch.float32, length=length)
    given |= {
        name: given[name].repeat(batch, *[1] * (given[name].dim() - 1))
        for name in ("x", "dt", "B", "C", "z", "state")
    }
    check(given)


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_that_was_given_away_is_overwritten(device: str) -> None:
    given = arguments(device, torch.float32)
    with override(OP, "triton"):
        expected, expected_state = ssd_norm_linear(**given)
        with states_donated():
            found, state = ssd_norm_linear(**given)
    assert state is given["state"]
    assert torch.equal(found, expected)
    assert torch.equal(state, expected_state)


@pytest.mark.parametrize("packed", [False, True], ids=["floats", "packed"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_token_is_a_chunk_of_one(device: str, packed: bool) -> None:
    """Of three tokens read at once and one by one."""
    given = arguments(device, torch.float32, length=3)
    if packed:
        given |= stored(OUT, 60, bits=4, block=32, symmetric=False, device=device).named
    with override(OP, "triton"):
        whole, expected = ssd_norm_linear(**given)
        state, rows = given["state"], []
        for t in range(3):
            part = {n: given[n][:, t : t + 1] for n in ("x", "dt", "B", "C", "z")}
            row, state = ssd_norm_linear(**given | part | {"state": state})
            rows.append(row)
    assert_close(OP, torch.cat(rows, dim=1), whole)
    assert_close("ssd", state, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": torch.zeros(1, 1, 3)}, r"z has shape \[1, 1, 3\]; it must be \[1, 1, 60\]"),
        ({"norm_weight": torch.zeros(3)}, r"norm_weight has shape \[3\]; it must be \[60\]"),
        ({"weight": torch.zeros(OUT, 3)}, r"weight has shape \[21, 3\]; it must be \[any, 60\]"),
        ({"bias": torch.zeros(3)}, r"bias has shape \[3\]; it must be \[21\]"),
        ({"dt": torch.zeros(1, 1, 3)}, r"dt has shape \[1, 1, 3\]; it must be \[1, 1, 6\]"),
        (
            {"dt_limit": (2.0, 1.0)},
            r"dt_limit is \(2.0, 1.0\); it must be \(smallest, largest\), from 0 up",
        ),
        ({"bits": 8}, "bits is 8, but scales is None; each block has a scale"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^ssd_norm_linear: {message}$"):
        ssd_norm_linear(**(arguments("cpu", torch.float32) | changes))
