"""Conba: the reference against loops in numpy, its limits, the kernels against the reference."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from longspan.kernels import choose, override
from longspan.kernels.conba import ConbaState, conba, scratch
from longspan.kernels.conba.reference import conba as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES
from tests.tolerances import assert_close

Arguments = dict[str, Any]
BY_TOKEN = ("s", "a", "u", "r")
STATES = [field.name for field in fields(ConbaState)]
MODES = pytest.mark.parametrize("every", [1, 3, None], ids=["token", "chunk", "off"])
# All, and those that are held against the reference.
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["reference", "chunked", "triton"])
WAYS = pytest.mark.parametrize("way", ["chunked", "triton"])
ACTIVATIONS = pytest.mark.parametrize("activation", ["identity", "tanh"])


def _arguments(
    batch: int,
    length: int,
    heads: int,
    states: int,
    width: int,
    *,
    every: int | None = 1,
    delay: int = 1,
    activation: str = "identity",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Arguments:
    """Arguments with slow and fast scalings; s, u and r are views of one tensor, as a mixer's."""
    sizes = [heads * states, heads * width, heads * width]
    projected = torch.randn(batch, length, sum(sizes), device=device).to(dtype)
    s, u, r = projected.split(sizes, dim=-1)
    adaptive, shape = every is not None, (batch, heads, states, width)
    state = ConbaState(
        x=torch.randn(batch, heads, states, device=device),
        delay=torch.randn(batch, delay, heads, states, device=device),
        gain=torch.randn(shape, device=device) / (2 * (states * width) ** 0.5)
        if adaptive
        else None,
        error=torch.randn(batch, heads, width, device=device) if adaptive else None,
        position=torch.tensor([5], device=device) if adaptive and every != 1 else None,
    )
    return {
        "s": s.unflatten(-1, (heads, states)),
        "a": torch.rand(batch, length, heads, states, device=device) ** 0.25,
        "u": u.unflatten(-1, (heads, width)),
        "r": r.unflatten(-1, (heads, width)) if adaptive else None,
        "w_tau": torch.randn(heads, states, device=device),
        "C": torch.randn(heads, width, states, device=device) / states**0.5,
        "D": torch.randn(heads, width, device=device),
        "state": state,
        "activation": activation,
        "update_every": every,
        "eta": 0.1,
        "k_max": 1.0,
    }


def _wide(value: Any) -> Any:
    if isinstance(value, ConbaState):
        return ConbaState(**{name: _wide(getattr(value, name)) for name in STATES})
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def _expected(arguments: Arguments) -> tuple[torch.Tensor, ConbaState]:
    """The reference in float64."""
    return reference(**{name: _wide(value) for name, value in arguments.items()})


def _assert_same_state(found: ConbaState, expected: ConbaState) -> None:
    for name in STATES:
        ours, theirs = getattr(found, name), getattr(expected, name)
        if theirs is None or not theirs.is_floating_point():
            assert ours is theirs is None or torch.equal(ours, theirs), name
        else:
            assert ours.dtype == torch.float32, name
            assert_close("conba", ours, theirs)


def _check(arguments: Arguments, way: Any) -> None:
    with override("conba", way):
        y, state = conba(**arguments)
    expected_y, expected_state = _expected(arguments)
    assert y.dtype == arguments["s"].dtype
    assert_close("conba", y, expected_y)
    _assert_same_state(state, expected_state)


def _in_parts(arguments: Arguments, cuts: list[int]) -> tuple[torch.Tensor, ConbaState]:
    state, outputs, start = arguments["state"], [], 0
    for cut in cuts:
        part = {
            name: None if arguments[name] is None else arguments[name][:, start : start + cut]
            for name in BY_TOKEN
        }
        y, state = conba(**{**arguments, **part, "state": state})
        outputs.append(y)
        start += cut
    return torch.cat(outputs, dim=1), state


@MODES
@ACTIVATIONS
@pytest.mark.parametrize("delay", [1, 3])
def test_reference_is_a_loop_in_numpy(every: int | None, activation: str, delay: int) -> None:
    arguments = _arguments(2, 9, 2, 5, 3, every=every, delay=delay, activation=activation)
    arguments["k_max"] = 0.5  # the first gains have about this norm
    found_y, found = _expected(arguments)
    a = {
        name: value.double().numpy()
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    }
    state = {name: _wide(getattr(arguments["state"], name)) for name in STATES}
    for b in range(2):
        for h in range(2):
            C, w = a["C"][h], a["w_tau"][h]
            history = [*state["delay"][b, :, h].numpy(), state["x"][b, h].numpy()]
            K = state["gain"][b, h].numpy() if every else np.zeros((5, 3))
            e = state["error"][b, h].numpy() if every else np.zeros(3)
            for k in range(9):
                delayed = (history[-1] + w * history[-1 - delay]) / (1 + np.abs(w))
                x = a["a"][b, k, h] * delayed + a["s"][b, k, h] + K @ e
                history.append(np.tanh(x) if activation == "tanh" else x)
                y = C @ history[-1] + a["D"][h] * a["u"][b, k, h]
                np.testing.assert_allclose(found_y[b, k, h].numpy(), y, 1e-9, 1e-12)
                if every:
                    last, e = e, a["r"][b, k, h] - y
                    if every == 1 or (5 + k + 1) % every == 0:
                        K = K + 0.1 * np.outer(C.T @ e, last) / (1 + last @ last)
                        K = K * min(1.0, 0.5 / np.sqrt((K * K).sum()))
            np.testing.assert_allclose(found.x[b, h].numpy(), history[-1], 1e-9, 1e-12)
            past = np.array(history[-1 - delay : -1])
            np.testing.assert_allclose(found.delay[b, :, h].numpy(), past, 1e-9, 1e-12)
            if found.gain is not None and found.error is not None:
                np.testing.assert_allclose(found.gain[b, h].numpy(), K, 1e-9, 1e-12)
                np.testing.assert_allclose(found.error[b, h].numpy(), e, 1e-9, 1e-12)


@IMPLEMENTATIONS
@pytest.mark.parametrize("device", DEVICES)
def test_without_gain_and_delay_it_is_gated_linear_attention(
    device: str, implementation: Any
) -> None:
    """With one key entry a state entry: x_t = sum_j s_j prod_{j<i<=t} a_i, from the start state."""
    arguments = _arguments(2, 140, 2, 5, 3, every=None, device=device)
    arguments["w_tau"] = torch.zeros(2, 5, device=device)
    with override("conba", implementation):
        y, state = conba(**arguments)
    a, s = arguments["a"].double(), arguments["s"].double()
    sums = a.log().cumsum(dim=1)
    decays = torch.exp(sums[:, :, None] - sums[:, None])
    seen = torch.ones(140, 140, device=device).tril()[None, :, :, None, None]
    x = (decays * seen).nan_to_num() * s[:, None]
    x = x.sum(dim=2) + torch.exp(sums) * arguments["state"].x[:, None].double()
    expected = torch.einsum("hpn,blhn->blhp", arguments["C"].double(), x)
    assert_close("conba", y, expected + (arguments["D"] * arguments["u"]).double())
    assert_close("conba", state.x, x[:, -1])


@IMPLEMENTATIONS
@pytest.mark.parametrize("device", DEVICES)
def test_a_gain_that_never_learns_is_none(device: str, implementation: Any) -> None:
    arguments = _arguments(1, 12, 2, 5, 3, delay=2, device=device)
    start = arguments["state"]
    zeros = {name: torch.zeros_like(getattr(start, name)) for name in ("gain", "error")}
    still = ConbaState(x=start.x, delay=start.delay, **zeros)
    off = ConbaState(x=start.x, delay=start.delay)
    with override("conba", implementation):
        y, state = conba(**{**arguments, "state": still, "eta": 0.0})
        expected, after = conba(**{**arguments, "state": off, "r": None, "update_every": None})
    assert_close("conba", y, expected)
    assert_close("conba", state.x, after.x)
    assert state.gain is not None
    assert not state.gain.any()


@IMPLEMENTATIONS
@pytest.mark.parametrize("device", DEVICES)
def test_the_gain_stands_still_between_updates(device: str, implementation: Any) -> None:
    """From position 5 on, with an update after every 8 tokens, the third token makes the first."""
    arguments = _arguments(1, 11, 2, 5, 3, every=8, device=device)
    gains = [arguments["state"].gain]
    with override("conba", implementation):
        for token in range(1, 12):
            part = {name: arguments[name][:, :token] for name in BY_TOKEN}
            gains.append(conba(**{**arguments, **part})[1].gain)
    changed = [not torch.equal(old, new) for old, new in pairwise(gains)]
    assert [token for token, new in enumerate(changed, 1) if new] == [3, 11]


@IMPLEMENTATIONS
@pytest.mark.parametrize("device", DEVICES)
def test_the_gain_is_clipped(device: str, implementation: Any) -> None:
    arguments = _arguments(1, 6, 2, 5, 3, device=device)
    with override("conba", implementation):
        _, state = conba(**{**arguments, "eta": 50.0, "k_max": 0.25})
    assert state.gain is not None
    norms = torch.linalg.vector_norm(state.gain, dim=(-2, -1))
    torch.testing.assert_close(norms, torch.full_like(norms, 0.25))


@MODES
@pytest.mark.parametrize(
    ("batch", "length", "heads", "states", "width", "delay"),
    [
        (2, 1, 3, 5, 4, 1),
        (1, 2, 2, 16, 8, 3),
        (2, 9, 1, 3, 20, 4),
        (1, 13, 2, 7, 5, 1),
    ],
)
@WAYS
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_shapes(
    device: str,
    way: str,
    dtype: torch.dtype,
    batch: int,
    length: int,
    heads: int,
    states: int,
    width: int,
    delay: int,
    every: int | None,
) -> None:
    sizes = (batch, length, heads, states, width)
    _check(_arguments(*sizes, every=every, delay=delay, device=device, dtype=dtype), way)


@MODES
@ACTIVATIONS
@WAYS
@pytest.mark.parametrize("delay", [1, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_many_tokens(device: str, way: str, activation: str, every: int | None, delay: int) -> None:
    length = 1000 if device == "cuda" else 30 if every else 140
    _check(
        _arguments(
            1, length, 2, 5, 3, every=every, delay=delay, activation=activation, device=device
        ),
        way,
    )


@pytest.mark.gpu
@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize(
    ("heads", "states", "width", "delay"), [(4, 64, 64, 1), (2, 128, 128, 2), (3, 16, 128, 1)]
)
def test_shapes_of_models(
    dtype: torch.dtype,
    length: int,
    heads: int,
    states: int,
    width: int,
    delay: int,
    every: int | None,
) -> None:
    sizes = (2, length, heads, states, width)
    _check(_arguments(*sizes, every=every, delay=delay, device="cuda", dtype=dtype), "triton")


@MODES
@WAYS
@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str, way: str, every: int | None) -> None:
    arguments = _arguments(2, 7, 2, 6, 4, every=every, delay=2, device=device)
    for name in BY_TOKEN:
        if arguments[name] is not None:
            arguments[name] = arguments[name].transpose(1, 3).contiguous().transpose(1, 3)
    arguments["s"] = torch.randn(2, 7, 2, 12, device=device)[..., ::2]
    arguments["w_tau"] = torch.randn(6, 2, device=device).t()
    arguments["C"] = torch.randn(6, 4, 2, device=device).permute(2, 1, 0)
    arguments["D"] = torch.randn(2, 8, device=device)[:, ::2]
    state = arguments["state"]
    arguments["state"] = ConbaState(
        x=state.x.transpose(0, 2).contiguous().transpose(0, 2),
        delay=state.delay.transpose(1, 3).contiguous().transpose(1, 3),
        gain=None if every is None else state.gain.transpose(2, 3).contiguous().transpose(2, 3),
        error=state.error,
        position=state.position,
    )
    _check(arguments, way)


@MODES
@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("cuts", [[1] * 13, [7, 1, 5]], ids=str)
@IMPLEMENTATIONS
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_one_pass(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    implementation: Any,
    cuts: list[int],
    delay: int,
    every: int | None,
) -> None:
    monkeypatch.setattr(scratch, "ONE_PASS_TOKENS", 4)
    monkeypatch.setattr(scratch, "CHUNK_TOKENS", 4)
    monkeypatch.setattr(scratch, "TURNS", 2)
    arguments = _arguments(1, 13, 2, 5, 3, every=every, delay=delay, device=device)
    expected_y, expected_state = _expected(arguments)
    with override("conba", implementation):
        y, state = _in_parts(arguments, cuts)
    assert_close("conba", y, expected_y)
    _assert_same_state(state, expected_state)


@MODES
@WAYS
@pytest.mark.parametrize("device", DEVICES)
def test_a_nan_stays_in_its_head(
    monkeypatch: pytest.MonkeyPatch, device: str, way: Any, every: int | None
) -> None:
    monkeypatch.setattr(scratch, "TURNS", 2)
    arguments = _arguments(1, 6, 2, 5, 3, every=every, device=device)
    arguments["s"] = arguments["s"].clone()
    arguments["s"][:, 2, 0, 1] = math.nan
    with override("conba", way):
        y, state = conba(**arguments)
    assert y[:, 2:, 0].isnan().all()
    assert state.x[:, 0, 1].isnan().all()
    assert y[:, :2].isfinite().all()
    assert y[:, :, 1].isfinite().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, Triton is not interpreted")
@pytest.mark.parametrize(("length", "delay"), [(4, 1), (140, 1), (9, 2)])
def test_scratch_bytes_is_what_is_allocated(
    monkeypatch: pytest.MonkeyPatch, length: int, delay: int
) -> None:
    arguments = _arguments(2, length, 2, 5, 3, every=None, delay=delay)
    allocated_bytes = []
    make = torch.empty

    def recording(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        allocated_bytes.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", recording)
    with override("conba", "triton"):
        conba(**arguments)
    formula_bytes = scratch.scratch_bytes(2, length, heads=2, d_state=5, delay=delay)
    # The two states before a single chunk are stacked.
    stacked_bytes = 4 * 2 * 2 * 2 * 5 if length <= scratch.ONE_PASS_TOKENS else 0
    assert sum(allocated_bytes) + stacked_bytes == formula_bytes


@pytest.mark.parametrize(
    ("length", "delay", "linear", "chunks"),
    [
        (1, 1, True, 1),
        (128, 1, True, 1),
        (129, 1, True, 3),
        (129, 2, True, 1),
        (129, 1, False, 1),
        (16_384, 1, True, 256),
    ],
)
def test_chunk_count(length: int, delay: int, linear: bool, chunks: int) -> None:
    assert scratch.chunk_count(length, delay=delay, linear=linear) == chunks


def test_what_is_chosen() -> None:
    """Without Triton the chunked form, of which the reference is the oracle."""
    choice = choose("conba", device_type="cpu", exporting=False)
    assert (choice.name, choice.reason) == ("chunked", "the tensors are on cpu: plain torch")
    assert choose("conba", device_type="cuda", exporting=False).name == "triton"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(2, 3, 2, 4)}, r"a has shape \[2, 3, 2, 4\]; it must be \[2, 3, 2, 5\]"),
        ({"a": torch.zeros(2, 3, 2, 5).half()}, "a has dtype torch.float16; it must be .*float32"),
        ({"C": torch.zeros(2, 5, 4)}, r"u has shape .* must be \[2, 3, 2, 5\]"),
        ({"activation": "relu"}, "activation is 'relu'; it must be one of identity, tanh"),
        ({"update_every": 0}, "update_every is 0; it must be 1 or more, or None"),
        ({"r": None}, "r is None with update_every=1; it must be given"),
        ({"update_every": 2}, "state.position is None with update_every=2; it must be given"),
        ({"update_every": None}, "r is given with update_every=None; it must be None"),
        (
            {"k_max": 0.0},
            "eta is 0.1 and k_max 0.0; the first must be 0 or more, the second above",
        ),
        (
            {"state": ConbaState(x=torch.zeros(2, 2, 5), delay=torch.zeros(2, 0, 2, 5))},
            "state.delay holds no state; it must hold one or more",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit(change: Arguments, message: str) -> None:
    with pytest.raises(ValueError, match=f"^conba: {message}$"):
        conba(**{**_arguments(2, 3, 2, 5, 3), **change})
