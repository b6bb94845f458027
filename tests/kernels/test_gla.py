"""Gated linear attention: reference against loops and whole matrices, kernel against reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from longspan.kernels import override
from longspan.kernels.gla import gla, scratch
from longspan.kernels.gla.onnx_op import value_parts
from longspan.kernels.gla.reference import gla as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, widen
from tests.tolerances import assert_close

Arguments = dict[str, Any]
OPTIONAL = ("scale", "state")
DECAYS = ["a decay a channel", "a decay a head"]
# Stands behind the last token and the last channel: who reads it, shows it.
OUTSIDE = 1e30


def _arguments(
    batch: int,
    length: int,
    heads: int,
    keys: int,
    values: int,
    *,
    decays: str = "a decay a channel",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Arguments:
    """Arguments as a mixer's, views of one tensor, with log decays from 0 to -30 a token."""
    sizes = [heads * keys, heads * keys, heads * values]
    projected = torch.full((batch, length + 2, sum(sizes) + 3), OUTSIDE, device=device)
    projected[:, :length, : sum(sizes)] = torch.randn(batch, length, sum(sizes), device=device)
    projected = projected.clamp(max=torch.finfo(dtype).max).to(dtype)
    q, k, v = projected[:, :length, : sum(sizes)].split(sizes, dim=-1)
    log_decay = -torch.linspace(0, 0.5, heads, device=device)
    if decays == "a decay a channel":
        log_decay = torch.full((batch, length + 2, heads, keys + 3), OUTSIDE, device=device)
        strength = torch.rand(batch, length, heads, keys, device=device) ** 8
        log_decay[:, :length, :, :keys] = -30 * strength
        log_decay = log_decay[:, :length, :, :keys]
    return {
        "q": q.unflatten(-1, (heads, keys)),
        "k": k.unflatten(-1, (heads, keys)),
        "v": v.unflatten(-1, (heads, values)),
        "log_decay": log_decay,
        "scale": 0.3,
        "state": torch.randn(batch, heads, keys, values, device=device),
    }


def _without(arguments: Arguments, *omitted: str) -> Arguments:
    return {name: value for name, value in arguments.items() if name not in omitted}


def _part(arguments: Arguments, where: slice) -> Arguments:
    """The arguments of some of the tokens."""
    names = ["q", "k", "v"] + (["log_decay"] if arguments["log_decay"].dim() == 4 else [])
    return {**arguments, **{name: arguments[name][:, where] for name in names}}


def _expected(arguments: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference in float64; what is omitted has its default."""
    batch, _, heads, keys = arguments["q"].shape
    wide = {
        name: widen(value) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    zeros = wide["log_decay"].new_zeros(batch, heads, keys, arguments["v"].shape[3])
    return reference(**{"scale": keys**-0.5, "state": zeros, **wide})


def _check(arguments: Arguments) -> None:
    with override("gla", "triton"):
        y, state = gla(**arguments)
    expected_y, expected_state = _expected(arguments)
    assert (y.dtype, state.dtype) == (torch.float32, torch.float32)
    row = "gla of bfloat16" if arguments["q"].dtype == torch.bfloat16 else "gla"
    assert_close(row, y, expected_y)
    assert_close(row, state, expected_state)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the kernel work in segments of 2 chunks of 32 tokens, from 5 tokens up."""
    monkeypatch.setattr(scratch, "ONE_PASS_TOKENS", 4)
    monkeypatch.setattr(scratch, "CHUNK_TOKENS", 32)
    monkeypatch.setattr(scratch, "SEGMENT_CHUNKS", 2)


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("omitted", [None, *OPTIONAL])
def test_reference_is_a_loop_in_numpy(omitted: str | None, decays: str) -> None:
    arguments = _arguments(2, 9, 3, 5, 4, decays=decays)
    if omitted is not None:
        del arguments[omitted]
    found_y, found_state = _expected(arguments)
    a = {
        name: value.double().numpy()
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    }
    scale = arguments.get("scale", 1 / math.sqrt(5))
    for batch in range(2):
        for head in range(3):
            S = np.zeros((5, 4)) if omitted == "state" else a["state"][batch, head].copy()
            for t in range(9):
                for c in range(5):
                    log = a["log_decay"]
                    fade = math.exp(log[batch, t, head, c] if log.ndim == 4 else log[head])
                    S[c] = fade * S[c] + a["k"][batch, t, head, c] * a["v"][batch, t, head]
                y = scale * sum(a["q"][batch, t, head, c] * S[c] for c in range(5))
                np.testing.assert_allclose(found_y[batch, t, head].numpy(), y, 1e-9, 1e-12)
            np.testing.assert_allclose(found_state[batch, head].numpy(), S, 1e-9, 1e-12)


def test_retention_is_its_parallel_form() -> None:
    """(Q K^T * D) V with D_ij = gamma^(i-j), i >= j (arXiv 2307.08621, equation 5)."""
    arguments = _without(_arguments(1, 12, 2, 4, 3, decays="a decay a head"), "state")
    found, _ = _expected(arguments)
    q, k, v, log_decay = (arguments[name].double() for name in ("q", "k", "v", "log_decay"))
    i = torch.arange(12)
    for head, gamma in enumerate(log_decay.exp().tolist()):
        D = torch.tril(gamma ** (i[:, None] - i[None, :]).double())
        expected = 0.3 * ((q[0, :, head] @ k[0, :, head].T) * D) @ v[0, :, head]
        torch.testing.assert_close(found[0, :, head], expected)


def test_gla_is_its_parallel_form() -> None:
    """((Q * B) (K / B)^T, masked) V, B the products of decays (arXiv 2312.06635, equation 4)."""
    arguments = _without(_arguments(1, 12, 2, 4, 3), "state")
    arguments["log_decay"] = arguments["log_decay"] / 30
    found, _ = _expected(arguments)
    q, k, v, log_decay = (arguments[name].double() for name in ("q", "k", "v", "log_decay"))
    B = log_decay.cumsum(1).exp()
    for head in range(2):
        scores = torch.tril((q * B)[0, :, head] @ (k / B)[0, :, head].T)
        torch.testing.assert_close(found[0, :, head], 0.3 * scores @ v[0, :, head])


@pytest.mark.parametrize(
    ("batch", "length", "heads", "keys", "values"),
    [
        (2, 1, 2, 5, 20),
        (1, 2, 3, 33, 7),
        (2, 8, 2, 16, 16),
        (2, 9, 1, 5, 3),
        (1, 63, 1, 24, 5),
        (1, 64, 2, 16, 16),
        (1, 65, 1, 36, 5),
        (1, 129, 1, 5, 36),
    ],
)
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_shapes(
    device: str,
    dtype: torch.dtype,
    decays: str,
    batch: int,
    length: int,
    heads: int,
    keys: int,
    values: int,
) -> None:
    _check(
        _arguments(batch, length, heads, keys, values, decays=decays, device=device, dtype=dtype)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 300, 2500])
@pytest.mark.parametrize(
    ("heads", "keys", "values", "decays"),
    [(4, 192, 384, DECAYS[0]), (6, 256, 512, DECAYS[1]), (2, 128, 128, DECAYS[0])],
)
def test_shapes_of_models(
    dtype: torch.dtype, length: int, heads: int, keys: int, values: int, decays: str
) -> None:
    arguments = _arguments(
        2, length, heads, keys, values, decays=decays, device="cuda", dtype=dtype
    )
    # Of K terms y is the sum, so its size is kept where the tolerances are meant for.
    arguments["scale"] = keys**-0.5
    _check(arguments)


@pytest.mark.parametrize(("decays", "length"), [(DECAYS[0], 300), (DECAYS[1], 1100)])
@pytest.mark.parametrize("device", DEVICES)
def test_many_tokens(device: str, decays: str, length: int) -> None:
    arguments = _arguments(1, length, 1, 5, 3, decays=decays, device=device)
    arguments["log_decay"] = arguments["log_decay"] / 100
    _check(arguments)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [1, 34])
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("omitted", [*OPTIONAL, "all"])
@pytest.mark.parametrize("device", DEVICES)
def test_optional_arguments(device: str, omitted: str, decays: str, length: int) -> None:
    arguments = _arguments(2, length, 1, 5, 3, decays=decays, device=device)
    _check(_without(arguments, *(OPTIONAL if omitted == "all" else (omitted,))))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [3, 34])
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str, decays: str, length: int) -> None:
    arguments = _arguments(2, length, 2, 5, 4, decays=decays, device=device)
    for name in ("q", "v"):
        arguments[name] = arguments[name].transpose(1, -1).contiguous().transpose(1, -1)
    arguments["k"] = torch.randn(2, length, 2, 10, device=device)[..., ::2]
    arguments["state"] = arguments["state"].transpose(1, 3).contiguous().transpose(1, 3)
    arguments["log_decay"] = arguments["log_decay"].repeat_interleave(2, dim=-1)[..., ::2]
    _check(arguments)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("cuts", [[1] * 9 + [66], [7, 1, 34, 33], [3, 72]], ids=str)
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_one_pass(device: str, decays: str, cuts: list[int]) -> None:
    arguments = _arguments(1, 75, 1, 5, 3, decays=decays, device=device)
    expected_y, expected_state = _expected(arguments)
    state, outputs, start = arguments["state"], [], 0
    with override("gla", "triton"):
        for cut in cuts:
            part = _part(arguments, slice(start, start + cut))
            y, state = gla(**{**part, "state": state})
            outputs.append(y)
            start += cut
    assert_close("gla", torch.cat(outputs, dim=1), expected_y)
    assert_close("gla", state, expected_state)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [4, 40])
@pytest.mark.parametrize("device", DEVICES)
def test_extreme_decays(device: str, length: int) -> None:
    """After a token that forgets everything the others are as exact as before it."""
    arguments = _arguments(1, length, 1, 5, 3, device=device)
    log_decay = torch.full((1, length, 1, 5), -0.001, device=device)
    log_decay[:, 1::7], log_decay[:, 2::13], log_decay[:, 3::17] = -1e4, 0.0, -math.inf
    _check({**arguments, "log_decay": log_decay})
    _check({**arguments, "log_decay": torch.full((1,), -30.0, device=device)})
    _check({**arguments, "log_decay": torch.full((1,), -math.inf, device=device)})


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [3, 40])
@pytest.mark.parametrize("device", DEVICES)
def test_a_nan_stays(device: str, length: int) -> None:
    arguments = _arguments(1, length, 2, 5, 3, device=device)
    arguments["log_decay"] = arguments["log_decay"].clone()
    arguments["log_decay"][:, 1, 0, 2] = math.nan
    with override("gla", "triton"):
        y, state = gla(**arguments)
    assert y[:, 0].isfinite().all()
    assert y[:, 1:, 0].isnan().all()
    assert state[:, 0, 2].isnan().all()
    assert y[:, :, 1].isfinite().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, Triton is not interpreted")
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [4, 33, 70])
def test_scratch_bytes_is_what_is_allocated(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    arguments = _arguments(1, length, 2, 5, 3)
    allocated_bytes = []
    make = torch.empty

    def recording(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        allocated_bytes.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", recording)
    with override("gla", "triton"):
        y, state = gla(**arguments)
    formula_bytes = scratch.scratch_bytes(1, length, heads=2, key_width=5, value_width=3)
    assert sum(allocated_bytes) == y.nbytes + state.nbytes + formula_bytes


@pytest.mark.parametrize(
    ("length", "chunks"), [(1, 0), (8, 0), (9, 1), (64, 1), (65, 2), (1024, 16), (10**6, 16)]
)
def test_scratch_bytes(length: int, chunks: int) -> None:
    found = scratch.scratch_bytes(2, length, heads=4, key_width=192, value_width=384)
    assert found == 4 * 2 * chunks * 4 * (192 * 384 + 192 + 64 * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 3, 4, 6)}, r"k has shape \[2, 3, 4, 6\]; it must be \[2, 3, 4, 5\]"),
        ({"v": torch.zeros(2, 3, 1, 6)}, r"v has shape \[2, 3, 1, 6\]; it must be \[2, 3, 4, 6\]"),
        ({"k": torch.zeros(2, 3, 4, 5).half()}, "k has dtype torch.float16; it must be .*float32"),
        ({"v": torch.zeros(2, 3, 4, 6).half()}, "v has dtype torch.float16; it must be .*float32"),
        (
            {"log_decay": torch.zeros(4).half()},
            "log_decay has dtype torch.float16; it must be torch.float32",
        ),
        ({"log_decay": torch.zeros(3)}, r"log_decay has shape \[3\]; it must be \[4\]"),
        (
            {"log_decay": torch.zeros(2, 3, 4)},
            r"log_decay has shape \[2, 3, 4\]; it must be \[2, 3, 4, 5\]",
        ),
        ({"state": torch.zeros(2, 4, 6, 5)}, r"state has shape .* must be \[2, 4, 5, 6\]"),
        ({"state": torch.zeros(2, 4, 5, 6).half()}, "state has dtype torch.float16; it must be .*"),
    ],
)
def test_what_does_not_fit(change: Arguments, message: str) -> None:
    with pytest.raises(ValueError, match=f"^gla: {message}$"):
        gla(**{**_arguments(2, 3, 4, 5, 6), **change})


@pytest.mark.parametrize(
    ("keys", "values", "parts"),
    [(4, 4, 1), (128, 128, 1), (192, 384, 4), (256, 512, 8), (256, 131, 131), (30_000, 8, 8)],
)
def test_value_parts(keys: int, values: int, parts: int) -> None:
    """A head of 192 x 384 would need 288 KiB of shared memory, more than any card's 227 KiB."""
    assert value_parts(keys, values) == parts


@pytest.mark.gpu
@pytest.mark.slow
def test_offsets_beyond_int32() -> None:
    arguments = _arguments(1, 600_000, 16, 64, 256, device="cuda", dtype=torch.bfloat16)
    with override("gla", "triton"):
        y, state = gla(**arguments)
        _, before = gla(**_part(arguments, slice(600_000 - 50)))
    expected_y, expected_state = _expected(
        {**_part(arguments, slice(600_000 - 50, None)), "state": before}
    )
    assert_close("gla of bfloat16", y[:, -50:], expected_y)
    assert_close("gla of bfloat16", state, expected_state)
