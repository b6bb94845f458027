"""The selective scan: the reference against a loop in numpy, the kernel against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longspan.kernels import override
from longspan.kernels.donation import states_donated
from longspan.kernels.selective_scan import scratch, selective_scan
from longspan.kernels.selective_scan.reference import selective_scan as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, widen
from tests.tolerances import assert_close

Arguments = dict[str, Any]
OPTIONAL = ("D", "z", "dt_bias", "state")


def _arguments(
    batch: int,
    length: int,
    width: int,
    states: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Arguments:
    """Arguments with slow and fast decays; B and C are views of one wider tensor."""
    projected = torch.randn(batch, length, 5 + 2 * states, device=device).to(dtype)
    return {
        "x": torch.randn(batch, length, width, device=device).to(dtype),
        "dt": torch.randn(batch, length, width, device=device).to(dtype),
        "A": -torch.arange(1.0, states + 1, device=device).repeat(width, 1),
        "B": projected[..., 5 : 5 + states],
        "C": projected[..., 5 + states :],
        "D": torch.randn(width, device=device),
        "z": torch.randn(batch, length, width, device=device).to(dtype),
        "dt_bias": torch.linspace(-7, 0, width, device=device),
        "state": torch.randn(batch, width, states, device=device),
    }


def _expected(arguments: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    wide = {name: widen(tensor) for name, tensor in arguments.items()}
    if wide["state"] is None:
        (batch, _, width), states = arguments["x"].shape, arguments["A"].shape[1]
        wide["state"] = arguments["A"].new_zeros(batch, width, states).double()
    return reference(**wide)  # type: ignore[arg-type]  # the table holds None where it may be None


def _check(arguments: Arguments) -> None:
    with override("selective_scan", "triton"):
        y, state = selective_scan(**arguments)
    expected_y, expected_state = _expected(arguments)
    assert y.dtype == arguments["x"].dtype
    assert state.dtype == torch.float32
    assert_close("selective_scan", y, expected_y)
    assert_close("selective_scan", state, expected_state)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let more than one pass begin at 9 tokens, and chunks be of 4 tokens or more."""
    monkeypatch.setattr(scratch, "ONE_PASS_TOKENS", 8)
    monkeypatch.setattr(scratch, "MIN_CHUNK_TOKENS", 4)


@pytest.fixture(params=["one walk", "three passes"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> scratch.Way:
    """Which way a long scan goes: with no scheduler to fill it walks, with many it does not."""
    chosen: scratch.Way = request.param
    schedulers = 0 if chosen == "one walk" else 10**6
    monkeypatch.setattr(
        "longspan.kernels.selective_scan.triton_kernel.scheduler_count", lambda device: schedulers
    )
    return chosen


@pytest.mark.parametrize("omitted", [None, *OPTIONAL])
def test_reference_is_a_loop_in_numpy(omitted: str | None) -> None:
    arguments = _arguments(1, 9, 6, 3)
    if omitted is not None:
        arguments[omitted] = None
    a = {
        name: np.zeros(()) if tensor is None else tensor.double().numpy()
        for name, tensor in arguments.items()
    }
    h = np.broadcast_to(a["state"], (1, 6, 3))[0].copy()
    y = np.empty((9, 6))
    for t in range(9):
        step = np.log1p(np.exp(a["dt"][0, t] + a["dt_bias"]))
        for e in range(6):
            h[e] = np.exp(step[e] * a["A"][e]) * h[e] + step[e] * a["B"][0, t] * a["x"][0, t, e]
            y[t, e] = h[e] @ a["C"][0, t]
        y[t] += a["D"] * a["x"][0, t]
        if omitted != "z":
            y[t] *= a["z"][0, t] / (1 + np.exp(-a["z"][0, t]))
    found_y, found_state = _expected(arguments)
    np.testing.assert_allclose(found_y[0].numpy(), y, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found_state[0].numpy(), h, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("batch", "length", "width", "states"),
    [(2, 1, 70, 5), (1, 2, 24, 16), (1, 63, 24, 5), (1, 64, 24, 1), (1, 65, 24, 5)],
)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_one_pass(
    device: str, dtype: torch.dtype, batch: int, length: int, width: int, states: int
) -> None:
    _check(_arguments(batch, length, width, states, device=device, dtype=dtype))


@pytest.mark.usefixtures("small_chunks", "way")
@pytest.mark.parametrize(
    ("batch", "length", "width", "states"),
    [
        (2, 9, 70, 5),
        (1, 16, 24, 16),
        (1, 11, 24, 20),
        (1, 65, 24, 3),
        (2, 17, 7, 1),
        (1, 33, 9, 16),
    ],
)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_more_than_one_pass(
    device: str, dtype: torch.dtype, batch: int, length: int, width: int, states: int
) -> None:
    _check(_arguments(batch, length, width, states, device=device, dtype=dtype))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("device", DEVICES)
def test_a_thousand_tokens(device: str) -> None:
    _check(_arguments(1, 1000, 8, 5, device=device))


@pytest.mark.usefixtures("small_chunks", "way")
@pytest.mark.parametrize("length", [1, 6, 10])
@pytest.mark.parametrize("omitted", [*OPTIONAL, "all"])
@pytest.mark.parametrize("device", DEVICES)
def test_optional_arguments(device: str, omitted: str, length: int) -> None:
    arguments = _arguments(2, length, 24, 5, device=device)
    arguments.update(dict.fromkeys(OPTIONAL if omitted == "all" else (omitted,)))
    _check(arguments)


@pytest.mark.usefixtures("small_chunks", "way")
@pytest.mark.parametrize("length", [5, 10])
@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str, length: int) -> None:
    arguments = _arguments(2, length, 24, 5, device=device)
    both = torch.randn(2, length, 48, device=device)
    arguments["x"], arguments["z"] = both[..., :24], both[..., 24:]
    arguments["dt"] = arguments["dt"].transpose(1, 2).contiguous().transpose(1, 2)
    arguments["C"] = arguments["C"].transpose(1, 2).contiguous().transpose(1, 2)
    arguments["A"] = arguments["A"].t().contiguous().t()
    arguments["state"] = arguments["state"].transpose(1, 2).contiguous().transpose(1, 2)
    arguments["D"] = torch.randn(48, device=device)[::2]
    _check(arguments)


@pytest.mark.usefixtures("small_chunks", "way")
@pytest.mark.parametrize("cuts", [[1] * 30, [7, 1, 13, 9], [29, 1]], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_one_pass(device: str, cuts: list[int]) -> None:
    arguments = _arguments(1, 30, 24, 5, device=device)
    expected_y, expected_state = _expected(arguments)
    state, outputs, start = arguments["state"], [], 0
    with override("selective_scan", "triton"):
        for cut in cuts:
            part = {
                name: tensor[:, start : start + cut]
                if name in ("x", "dt", "B", "C", "z")
                else tensor
                for name, tensor in arguments.items()
            }
            y, state = selective_scan(**{**part, "state": state})
            outputs.append(y)
            start += cut
    assert_close("selective_scan", torch.cat(outputs, dim=1), expected_y)
    assert_close("selective_scan", state, expected_state)


@pytest.mark.parametrize("device", DEVICES)
def test_extreme_steps(device: str) -> None:
    arguments = _arguments(1, 3, 24, 5, device=device)
    arguments["dt"] = torch.tensor([-60.0, 60.0, -16.0], device=device)[None, :, None].expand(
        1, 3, 24
    )
    arguments["dt_bias"] = None
    _check(arguments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("small_chunks", "way")
@pytest.mark.parametrize("states", [3, 16])
def test_extreme_decays_of_a_block(device: str, states: int) -> None:
    """Steps from nothing to everything, forgotten and kept, at every place of a block of 16."""
    arguments = _arguments(1, 35, 24, states, device=device)
    arguments["dt"] = (
        torch.tensor([-60.0, 60.0, -16.0, 0.0, 5.0], device=device)
        .repeat(7)[None, :, None]
        .expand(1, 35, 24)
    )
    arguments["dt_bias"] = None
    _check(arguments)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [8, 20])
@pytest.mark.parametrize("device", DEVICES)
def test_a_state_given_away(way: scratch.Way, device: str, length: int) -> None:
    arguments = _arguments(1, length, 24, 5, device=device)
    with override("selective_scan", "triton"):
        expected_y, expected_state = selective_scan(**arguments)
        with states_donated():
            y, state = selective_scan(**arguments)
    assert state is arguments["state"]
    assert torch.equal(y, expected_y)
    assert torch.equal(state, expected_state)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, Triton is not interpreted")
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [8, 13])
def test_scratch_bytes_is_what_is_allocated(
    monkeypatch: pytest.MonkeyPatch, way: scratch.Way, length: int
) -> None:
    arguments = _arguments(2, length, 24, 5)
    allocated_bytes = []
    make = torch.empty

    def recording(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        allocated_bytes.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", recording)
    with override("selective_scan", "triton"):
        y, state = selective_scan(**arguments)
    schedulers = 0 if way == "one walk" else None
    formula_bytes = scratch.scratch_bytes(2, length, 24, 5, schedulers)
    assert sum(allocated_bytes) == y.nbytes + state.nbytes + formula_bytes
    assert formula_bytes <= scratch.scratch_bytes(2, length, 24, 5)


@pytest.mark.parametrize(
    ("batch", "length", "d_inner", "d_state", "schedulers", "way"),
    [
        (1, 128, 5120, 16, 528, "one pass"),
        (1, 129, 5120, 16, 528, "one walk"),
        (1, 129, 4224, 16, 528, "one walk"),
        (1, 129, 4216, 16, 528, "three passes"),
        (1, 129, 4217, 16, 528, "one walk"),
        (2, 129, 3072, 16, 528, "one walk"),
        (1, 129, 3072, 16, 328, "one walk"),
        (1, 129, 5120, 17, 528, "three passes"),
        (1, 129, 5120, 16, None, "three passes"),
        (26, 2048, 5120, 16, None, "one pass"),
    ],
)
def test_choose_way(
    batch: int, length: int, d_inner: int, d_state: int, schedulers: int | None, way: scratch.Way
) -> None:
    assert scratch.choose_way(batch, length, d_inner, d_state, schedulers) == way
    copied = 0 if way == "one pass" else 4 * 2 * batch * length * d_state
    states = 4 * 5 * batch * d_inner * (d_state + 1) if way == "three passes" else 0
    found = scratch.scratch_bytes(batch, length, d_inner, d_state, schedulers)
    assert found == copied + states


@pytest.mark.parametrize(
    ("length", "chunk"), [(129, 32), (2048, 32), (2049, 64), (1_000_000, 15_648)]
)
def test_chunk_tokens(length: int, chunk: int) -> None:
    assert scratch.chunk_tokens(length) == chunk
    chunks = -(-length // chunk)
    expected_bytes = 4 * (chunks * 5120 * 17 + 2 * length * 16)
    assert scratch.scratch_bytes(1, length, 5120, 16) == expected_bytes
