"""A mixture of experts: the reference against a loop in numpy, every way against the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from longspan.kernels import choose, override
from longspan.kernels.moe import Matrices, Packed, moe, moe_brought
from longspan.kernels.moe.reference import moe as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, widen
from tests.kernels.quantized import PACKINGS, stored
from tests.tolerances import assert_close

Arguments = dict[str, Any]
WAYS = pytest.mark.parametrize("way", ["grouped", "triton"])


def _arguments(
    batch: int,
    length: int,
    width: int,
    d_ff: int,
    experts: int,
    top_k: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Arguments:
    """Arguments whose sums keep the size of x, whatever the widths."""
    gate_up = torch.randn(experts, 2 * d_ff, width, device=device) / width**0.5
    down = torch.randn(experts, width, d_ff, device=device) / d_ff**0.5
    return {
        "x": torch.randn(batch, length, width, device=device).to(dtype),
        "logits": torch.randn(batch, length, experts, device=device),
        "gate_up": gate_up.to(dtype),
        "down": down.to(dtype),
        "top_k": top_k,
        "renormalise": False,
    }


def _expected(arguments: Arguments) -> torch.Tensor:
    """The reference in float64, with every expert for every token."""
    wide = {name: _widened(value) for name, value in arguments.items()}
    x, logits = wide["x"], wide["logits"]
    flat = {"x": x.flatten(0, 1), "logits": logits.flatten(0, 1)}
    return reference(**{**wide, **flat}).view(x.shape)


def _widened(value: Any) -> Any:
    if isinstance(value, Packed):
        return replace(value, scales=value.scales.double())
    return widen(value) if isinstance(value, torch.Tensor) else value


def _packed(matrices: torch.Tensor, *, bits: int, block: int, symmetric: bool) -> Packed:
    """Others of as many experts and the same sizes, in 8 or 4 bits."""
    experts, outputs, width = matrices.shape
    found = stored(
        experts * outputs, width,
        bits=bits, block=block, symmetric=symmetric,
        device=matrices.device.type, dtype=matrices.dtype,
    )  # fmt: skip
    weight, scales, zeros = (
        None if each is None else each.unflatten(0, (experts, outputs)) for each in found.tensors
    )
    assert weight is not None
    assert scales is not None
    return Packed(weight=weight, scales=scales, zeros=zeros, bits=bits)


def _check(arguments: Arguments, way: Any) -> None:
    with override("moe", way):
        y = moe(**arguments)
    assert y.dtype == arguments["x"].dtype
    assert_close("moe", y, _expected(arguments))


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_reference_is_a_loop_in_numpy(top_k: int, renormalise: bool) -> None:
    arguments = {**_arguments(1, 6, 5, 3, 4, top_k), "renormalise": renormalise}
    found = _expected(arguments)
    a = {name: widen(arguments[name]).numpy() for name in ("x", "logits", "gate_up", "down")}
    for t in range(6):
        p = np.exp(a["logits"][0, t])
        p /= p.sum()
        chosen = sorted(range(4), key=lambda i: -p[i])[:top_k]
        total = sum(p[i] for i in chosen) if renormalise else 1.0
        y = np.zeros(5)
        for i in chosen:
            gate, up = np.split(a["gate_up"][i] @ a["x"][0, t], 2)
            y += p[i] / total * (a["down"][i] @ (gate / (1 + np.exp(-gate)) * up))
        np.testing.assert_allclose(found[0, t].numpy(), y, rtol=1e-9, atol=1e-12)


@WAYS
@pytest.mark.parametrize(
    ("batch", "length", "width", "d_ff", "experts", "top_k"),
    [
        (1, 1, 16, 12, 4, 2),
        (2, 2, 20, 24, 5, 2),
        (1, 63, 33, 17, 3, 1),
        (1, 65, 16, 40, 16, 2),
        (1, 3, 16, 12, 1, 1),
        (2, 40, 16, 33, 2, 2),
    ],
)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_shapes(
    device: str,
    dtype: torch.dtype,
    batch: int,
    length: int,
    width: int,
    d_ff: int,
    experts: int,
    top_k: int,
    way: str,
) -> None:
    sizes = (batch, length, width, d_ff, experts, top_k)
    _check(_arguments(*sizes, device=device, dtype=dtype), way)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 7, 700])
def test_shapes_of_models(dtype: torch.dtype, length: int) -> None:
    _check(_arguments(1, length, 512, 1408, 16, 2, device="cuda", dtype=dtype), "triton")


@WAYS
@pytest.mark.parametrize("device", DEVICES)
def test_every_token_to_one_expert(device: str, way: str) -> None:
    """Fifteen experts have nothing to do, one has more than a tile."""
    arguments = _arguments(1, 70, 16, 12, 16, 1, device=device)
    arguments["logits"][..., 11] += 20.0
    _check(arguments, way)


@WAYS
@pytest.mark.parametrize("device", DEVICES)
def test_renormalised(device: str, way: str) -> None:
    _check({**_arguments(2, 9, 16, 12, 6, 3, device=device), "renormalise": True}, way)


@WAYS
@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str, way: str) -> None:
    arguments = _arguments(2, 9, 16, 12, 4, 2, device=device)
    arguments["x"] = torch.randn(2, 9, 32, device=device)[..., ::2]
    arguments["logits"] = torch.randn(2, 4, 9, device=device).transpose(1, 2)
    arguments["gate_up"] = torch.randn(4, 16, 24, device=device).transpose(1, 2)
    arguments["down"] = torch.randn(4, 12, 16, device=device).transpose(1, 2) / 4
    _check(arguments, way)


@WAYS
@pytest.mark.parametrize("device", DEVICES)
def test_weights_of_another_dtype_are_cast(device: str, way: str) -> None:
    arguments = _arguments(1, 5, 16, 12, 4, 2, device=device)
    arguments["gate_up"] = arguments["gate_up"].half()
    arguments["down"] = arguments["down"].bfloat16()
    _check(arguments, way)


@WAYS
@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
@pytest.mark.parametrize(("length", "width", "d_ff"), [(1, 64, 32), (70, 80, 72)])
def test_packed(
    device: str,
    dtype: torch.dtype,
    length: int,
    width: int,
    d_ff: int,
    bits: int,
    block: int,
    symmetric: bool,
    way: str,
) -> None:
    """Matrices of 8 and 4 bits, whose rows are whole blocks or are filled up."""
    arguments = _arguments(1, length, width, d_ff, 3, 2, device=device, dtype=dtype)
    for name in ("gate_up", "down"):
        arguments[name] = _packed(arguments[name], bits=bits, block=block, symmetric=symmetric)
    _check(arguments, way)


@WAYS
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["gate_up", "down"])
def test_one_matrix_packed(name: str, device: str, way: str) -> None:
    """As where experts are narrower than a block."""
    arguments = _arguments(1, 9, 64, 48, 4, 2, device=device)
    arguments[name] = _packed(arguments[name], bits=4, block=32, symmetric=True)
    _check(arguments, way)


@pytest.mark.parametrize("way", ["reference", "grouped", "triton"])
@pytest.mark.parametrize("device", DEVICES)
def test_of_equal_experts_the_lower_numbers_are_taken(device: str, way: Any) -> None:
    arguments = _arguments(1, 20, 16, 12, 16, 2, device=device)
    arguments["logits"] = torch.zeros(1, 20, 16, device=device)
    arguments["logits"][..., 3] = -1.0
    arguments["logits"][..., [5, 9, 14]] = 1.0
    chosen = arguments["logits"].clone()
    chosen[..., 14] = -40.0
    with override("moe", way):
        y = moe(**arguments)
        alone = moe(**{**arguments, "logits": chosen, "renormalise": True})
    share = float(arguments["logits"][0, 0].softmax(0)[5])
    assert_close("moe", y, alone * 2 * share)


@WAYS
@pytest.mark.parametrize("device", DEVICES)
def test_a_token_does_not_hear_of_the_others(device: str, way: Any) -> None:
    arguments = _arguments(1, 40, 16, 12, 4, 2, device=device)
    with override("moe", way):
        whole = moe(**arguments)
        for start, end in ((0, 1), (1, 18), (18, 40)):
            part = {name: arguments[name][:, start:end] for name in ("x", "logits")}
            assert_close("moe", moe(**{**arguments, **part}), whole[:, start:end])


def test_what_is_chosen() -> None:
    reason = "the tensors are on cpu: plain torch"
    choice = choose("moe", device_type="cpu", exporting=False)
    assert (choice.name, choice.reason) == ("grouped", reason)
    wide = choose("moe", device_type="cuda", exporting=False, dtype=torch.float64)
    assert wide.name == "grouped"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, 5)}, r"logits has shape .* must be \[2, 3, 4\]"),
        (
            {"logits": torch.zeros(2, 3, 4).half()},
            "logits has dtype torch.float16; it must be torch.float32",
        ),
        ({"gate_up": torch.zeros(4, 6, 7)}, r"gate_up has shape .* must be \[4, 6, 5\]"),
        ({"gate_up": torch.zeros(4, 7, 5)}, r"gate_up has shape .* must be \[4, 6, 5\]"),
        ({"down": torch.zeros(4, 5, 6)}, r"down has shape .* must be \[4, 5, 3\]"),
        ({"top_k": 5}, "top_k is 5; it must be from 1 to the 4 experts"),
        ({"top_k": 0}, "top_k is 0; it must be from 1 to the 4 experts"),
    ],
    ids=str,
)
def test_what_does_not_fit(change: Arguments, message: str) -> None:
    with pytest.raises(ValueError, match=f"^moe: {message}$"):
        moe(**{**_arguments(2, 3, 5, 3, 4, 2), **change})


@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_experts_that_are_brought(
    device: str, dtype: torch.dtype, renormalise: bool, packed: bool
) -> None:
    """Only those that tokens go to are asked for, with how many each has."""
    arguments = _arguments(2, 9, 24, 16, 5, 2, device=device, dtype=dtype)
    arguments["renormalise"] = renormalise
    arguments["logits"][..., 3] = -100.0
    if packed:
        for name in ("gate_up", "down"):
            arguments[name] = _packed(arguments[name], bits=4, block=32, symmetric=False)
    gate_up, down = arguments["gate_up"], arguments["down"]
    asked = {}

    def bring(tokens: Mapping[int, int]) -> Iterator[tuple[int, Matrices, Matrices]]:
        asked.update(tokens)
        for expert in tokens:
            yield expert, gate_up[expert], down[expert]

    y = moe_brought(arguments["x"], arguments["logits"], bring, top_k=2, renormalise=renormalise)
    assert sum(asked.values()) == 2 * 9 * 2
    assert 3 not in asked
    assert_close("moe", y, _expected(arguments))


def test_what_does_not_fit_experts_that_are_brought() -> None:
    arguments = _arguments(1, 4, 8, 4, 3, 4)
    with pytest.raises(ValueError, match="top_k is 4; it must be from 1 to the 3 experts"):
        moe_brought(arguments["x"], arguments["logits"], lambda _: [], top_k=4)
