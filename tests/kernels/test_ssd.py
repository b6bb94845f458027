"""The state-space dual: reference against loops and einsums, kernel against reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from longspan.kernels import override
from longspan.kernels.ssd import scratch, ssd, triton_slices
from longspan.kernels.ssd.reference import ssd as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, widen
from tests.tolerances import assert_close

Arguments = dict[str, Any]
OPTIONAL = ("D", "dt_bias", "dt_limit", "state")
BY_TOKEN = ("x", "dt", "B", "C")
NO_LIMIT = (0.0, math.inf)
LIMIT = (0.01, 0.6)


def _arguments(
    batch: int,
    length: int,
    heads: int,
    width: int,
    groups: int,
    states: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Arguments:
    """Arguments with slow and fast decays; x, B and C are views of one tensor, as a mixer's are."""
    sizes = [heads * width, groups * states, groups * states]
    convolved = torch.randn(batch, length, sum(sizes), device=device).to(dtype)
    x, B, C = convolved.split(sizes, dim=-1)
    projected = torch.randn(batch, length, 5 + heads, device=device).to(dtype)
    return {
        "x": x.unflatten(-1, (heads, width)),
        "dt": projected[..., 5:],
        "A": -torch.linspace(1, 16, heads, device=device),
        "B": B.unflatten(-1, (groups, states)),
        "C": C.unflatten(-1, (groups, states)),
        "D": torch.randn(heads, device=device),
        "dt_bias": torch.linspace(-7, 0, heads, device=device),
        "dt_limit": LIMIT,
        "state": torch.randn(batch, heads, states, width, device=device),
    }


def _without(arguments: Arguments, *omitted: str) -> Arguments:
    return {name: value for name, value in arguments.items() if name not in omitted}


def _expected(arguments: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference in float64; what is omitted has its default."""
    batch, _, heads, width = arguments["x"].shape
    states = arguments["B"].shape[3]
    wide = {
        name: widen(value) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    zeros = arguments["A"].new_zeros(batch, heads, states, width).double()
    optional = {"D": None, "dt_bias": None, "dt_limit": NO_LIMIT, "state": zeros}
    return reference(**{**optional, **wide})


def _check(arguments: Arguments) -> None:
    with override("ssd", "triton"):
        y, state = ssd(**arguments)
    expected_y, expected_state = _expected(arguments)
    dtype = arguments["x"].dtype
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert_close("ssd", y, expected_y)
    row = "ssd state of bfloat16" if dtype == torch.bfloat16 else "ssd"
    assert_close(row, state, expected_state)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 5 tokens up, make the kernel work in slices of 32 tokens, in chunks of 16."""
    monkeypatch.setattr(scratch, "ONE_PASS_TOKENS", 4)
    monkeypatch.setattr(scratch, "CHUNK_TOKENS", 32)
    monkeypatch.setattr(scratch, "SLICE_TOKENS", 32)


@pytest.mark.parametrize("skip", ["a number a head", "a number a channel"])
@pytest.mark.parametrize("omitted", [None, *OPTIONAL])
def test_reference_is_a_loop_in_numpy(omitted: str | None, skip: str) -> None:
    arguments = _arguments(2, 9, 4, 3, 2, 5)
    if skip == "a number a channel":
        arguments["D"] = torch.randn(4, 3)
    if omitted is not None:
        del arguments[omitted]
    found_y, found_state = _expected(arguments)
    a = {
        name: value.double().numpy()
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    }
    D = np.broadcast_to(a.get("D", np.zeros(4)).reshape(4, -1), (4, 3))
    bias = a.get("dt_bias", np.zeros(4))
    low, high = arguments.get("dt_limit", NO_LIMIT)
    for batch in range(2):
        for head in range(4):
            group = head // 2
            h = np.zeros((5, 3)) if omitted == "state" else a["state"][batch, head].copy()
            for t in range(9):
                step = np.log1p(np.exp(a["dt"][batch, t, head] + bias[head]))
                step = min(max(step, low), high)
                x, B, C = (
                    a["x"][batch, t, head],
                    a["B"][batch, t, group],
                    a["C"][batch, t, group],
                )
                h = np.exp(step * a["A"][head]) * h + step * np.outer(B, x)
                y = C @ h + D[head] * x
                np.testing.assert_allclose(found_y[batch, t, head].numpy(), y, 1e-9, 1e-12)
            np.testing.assert_allclose(found_state[batch, head].numpy(), h, 1e-9, 1e-12)


def _running_sums(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[..., i, j] holds the sum of `a` over j+1 .. i, and -inf beyond the diagonal."""
    sums = np.cumsum(a, axis=-1)
    between = sums[..., :, None] - sums[..., None, :]
    return np.where(np.tri(a.shape[-1], dtype=bool), between, -np.inf)


def test_reference_is_four_einsums() -> None:
    """The block decomposition of arXiv 2405.21060, section 6, in 6 chunks of 8 tokens."""
    batch, chunks, chunk, heads = 2, 6, 8, 4
    arguments = _arguments(batch, chunks * chunk, heads, 3, 2, 5)
    found_y, found_state = _expected(_without(arguments, "D", "dt_bias", "dt_limit"))
    x, dt, A, B, C, state = (
        arguments[name].double().numpy() for name in ("x", "dt", "A", "B", "C", "state")
    )

    def cut(tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return tensor.reshape(batch, chunks, chunk, *tensor.shape[2:])

    step = np.log1p(np.exp(dt))
    a = cut(step * A).transpose(0, 3, 1, 2)
    inputs = cut(step[..., None] * x)
    B, C = cut(B.repeat(2, axis=2)), cut(C.repeat(2, axis=2))
    sums = np.cumsum(a, axis=-1)

    inside = np.exp(_running_sums(a))
    y = np.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, inside, inputs)
    own = np.einsum("bclhn,bhcl,bclhp->bchnp", B, np.exp(sums[..., -1:] - sums), inputs)
    all_states = np.concatenate([state[:, None], own], axis=1)
    between = np.exp(_running_sums(np.pad(sums[..., -1], ((0, 0), (0, 0), (1, 0)))))
    passed = np.einsum("bhzc,bchnp->bzhnp", between, all_states)
    y += np.einsum("bclhn,bchnp,bhcl->bclhp", C, passed[:, :-1], np.exp(sums))
    np.testing.assert_allclose(found_y.numpy(), y.reshape(x.shape), 1e-9, 1e-11)
    np.testing.assert_allclose(found_state.numpy(), passed[:, -1], 1e-9, 1e-11)


@pytest.mark.parametrize(
    ("batch", "length", "heads", "width", "groups", "states"),
    [
        (2, 1, 4, 5, 2, 20),
        (1, 2, 3, 33, 3, 7),
        (2, 8, 2, 16, 1, 16),
        (2, 9, 2, 5, 1, 3),
        (1, 63, 2, 24, 2, 5),
        (1, 64, 2, 16, 1, 16),
        (1, 65, 4, 5, 2, 36),
        (2, 129, 2, 36, 1, 5),
    ],
)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_shapes(
    device: str,
    dtype: torch.dtype,
    batch: int,
    length: int,
    heads: int,
    width: int,
    groups: int,
    states: int,
) -> None:
    _check(_arguments(batch, length, heads, width, groups, states, device=device, dtype=dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize(
    ("heads", "width", "groups", "states"),
    [(8, 64, 1, 128), (4, 80, 2, 256), (4, 128, 1, 64)],
)
def test_shapes_of_models(
    dtype: torch.dtype, length: int, heads: int, width: int, groups: int, states: int
) -> None:
    arguments = _arguments(2, length, heads, width, groups, states, device="cuda", dtype=dtype)
    # Of N terms y is the sum, so its size is kept where the tolerances are meant for.
    arguments["C"] = arguments["C"] / states**0.5
    _check(arguments)


@pytest.mark.parametrize("device", DEVICES)
def test_a_thousand_tokens(device: str) -> None:
    _check(_arguments(1, 1000, 2, 5, 1, 3, device=device))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [1, 20])
@pytest.mark.parametrize("omitted", [*OPTIONAL, "all"])
@pytest.mark.parametrize("device", DEVICES)
def test_optional_arguments(device: str, omitted: str, length: int) -> None:
    arguments = _arguments(2, length, 4, 5, 2, 3, device=device)
    _check(_without(arguments, *(OPTIONAL if omitted == "all" else (omitted,))))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [3, 20])
@pytest.mark.parametrize("device", DEVICES)
def test_a_skip_for_each_channel(device: str, length: int) -> None:
    arguments = _arguments(2, length, 4, 5, 2, 3, device=device)
    arguments["D"] = torch.randn(5, 4, device=device).t()
    _check(arguments)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [3, 20])
@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str, length: int) -> None:
    arguments = _arguments(2, length, 4, 5, 2, 3, device=device)
    for name in ("x", "dt", "C"):
        arguments[name] = arguments[name].transpose(1, -1).contiguous().transpose(1, -1)
    arguments["B"] = torch.randn(2, length, 2, 6, device=device)[..., ::2]
    arguments["state"] = arguments["state"].transpose(1, 3).contiguous().transpose(1, 3)
    arguments["A"] = arguments["A"].repeat_interleave(2)[::2]
    arguments["D"] = torch.randn(8, device=device)[::2]
    arguments["dt_bias"] = torch.randn(8, device=device)[::2]
    _check(arguments)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("cuts", [[1] * 45, [7, 1, 24, 13], [44, 1], [3, 42]], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_one_pass(device: str, cuts: list[int]) -> None:
    arguments = _arguments(1, 45, 2, 5, 1, 3, device=device)
    expected_y, expected_state = _expected(arguments)
    state, outputs, start = arguments["state"], [], 0
    with override("ssd", "triton"):
        for cut in cuts:
            part = {name: arguments[name][:, start : start + cut] for name in BY_TOKEN}
            y, state = ssd(**{**arguments, **part, "state": state})
            outputs.append(y)
            start += cut
    assert_close("ssd", torch.cat(outputs, dim=1), expected_y)
    assert_close("ssd", state, expected_state)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [3, 20])
@pytest.mark.parametrize("device", DEVICES)
def test_extreme_steps(device: str, length: int) -> None:
    arguments = _arguments(1, length, 2, 5, 1, 3, device=device)
    arguments["dt"] = torch.full((1, length, 2), -16.0, device=device)
    arguments["dt"][:, 0], arguments["dt"][:, 1] = -60.0, 60.0
    _check(_without(arguments, "dt_bias", "dt_limit"))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [3, 20])
@pytest.mark.parametrize("device", DEVICES)
def test_a_nan_stays(device: str, length: int) -> None:
    arguments = _arguments(1, length, 2, 5, 1, 3, device=device)
    arguments["dt"] = arguments["dt"].clone()
    arguments["dt"][:, 1, 0] = math.nan
    with override("ssd", "triton"):
        y, state = ssd(**arguments)
    assert y[:, 1:, 0].isnan().all()
    assert state[:, 0].isnan().all()
    assert y[:, :, 1].isfinite().all()


@pytest.fixture
def stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stack heads in float32, as the interpreter has no bfloat16, in several segments."""
    most = property(lambda sizes: 2 if sizes.heads // sizes.groups % 2 == 0 else 1)
    monkeypatch.setattr(scratch.Sizes, "stacked_heads", most)
    monkeypatch.setattr(scratch, "STACKED_PROGRAMS", 24)
    monkeypatch.setattr(scratch, "BFLOAT16_BYTES", 4)


# Log2 decays of a chunk around the one that two factors can say, on both of its sides and far off.
DECAYS = [0.01, 1.0, 5.0, 40.0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, Triton is not interpreted")
@pytest.mark.usefixtures("small_chunks", "stacked")
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2, 37, 4, 16, 2, 16), id="two heads of two groups"),
        pytest.param((1, 100, 6, 16, 1, 20), id="several segments and slices, odd states"),
        pytest.param((1, 64, 3, 16, 1, 16), id="no two heads"),
    ],
)
def test_stacked_heads(shape: tuple[int, ...], decay: float) -> None:
    arguments = _arguments(*shape)
    arguments["A"] *= decay
    _check(arguments)
    _check(_without(arguments, "D", "dt_bias"))


def _about_the_limit(decay: float, chunk: int, **kind: Any) -> Arguments:
    """Each chunk of so many tokens decays by 2^decay in every head."""
    arguments = _arguments(1, 4 * chunk, 4, 16, 2, 16, **kind)
    step = 0.5
    arguments["dt_limit"] = (step, step)
    arguments["A"] = torch.full_like(arguments["A"], decay * math.log(2) / (chunk * step))
    return arguments


# On both sides of the decay that two factors can say, and where those of two chunks could not.
LIMIT_DECAYS = [-119.0, -121.0, -155.0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, Triton is not interpreted")
@pytest.mark.usefixtures("small_chunks", "stacked")
@pytest.mark.parametrize("decay", LIMIT_DECAYS)
def test_decays_about_the_limit_of_two_factors(
    monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    monkeypatch.setattr(scratch, "STACKED_PROGRAMS", 1)
    _check(_about_the_limit(decay, 16))


@pytest.mark.gpu
@pytest.mark.parametrize("decay", LIMIT_DECAYS)
def test_decays_about_the_limit_of_two_factors_on_cuda(
    monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    monkeypatch.setattr(scratch, "STACKED_PROGRAMS", 1)
    _check(_about_the_limit(decay, 64, device="cuda", dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [63, 1000, 5000])
@pytest.mark.parametrize(("heads", "width", "groups"), [(8, 64, 1), (6, 64, 2), (4, 128, 1)])
def test_stacked_heads_of_models(
    heads: int, width: int, groups: int, length: int, decay: float
) -> None:
    """By norms: with slow decays states reach hundreds, and 2^-9 of them shows in a small y."""
    arguments = _arguments(
        1, length, heads, width, groups, 128, device="cuda", dtype=torch.bfloat16
    )
    arguments["A"] *= decay
    with override("ssd", "triton"):
        found = ssd(**arguments)
    for one, expected in zip(found, _expected(arguments), strict=True):
        assert (one.double() - expected).norm() < 6e-3 * expected.norm()


@pytest.mark.gpu
def test_where_registers_are_few_one_head_is_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_slices, "shared_memory_bytes", lambda device: 99 * 1024)
    _check(_arguments(1, 1000, 8, 64, 1, 128, device="cuda", dtype=torch.bfloat16))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, Triton is not interpreted")
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("length", [4, 20, 32, 33, 100])
def test_scratch_bytes_is_what_is_held(
    monkeypatch: pytest.MonkeyPatch, length: int, dtype: torch.dtype
) -> None:
    sizes = scratch.Sizes(
        heads=4, groups=2, head_width=5, d_state=3, dtype=str(dtype).removeprefix("torch.")
    )
    _check_scratch(monkeypatch, _arguments(2, length, 4, 5, 2, 3, dtype=dtype), sizes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, Triton is not interpreted")
@pytest.mark.usefixtures("small_chunks", "stacked")
@pytest.mark.parametrize("length", [4, 20, 33])
def test_scratch_bytes_of_stacked_heads(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    sizes = scratch.Sizes(heads=4, groups=2, head_width=16, d_state=16, dtype="float32")
    _check_scratch(monkeypatch, _arguments(2, length, 4, 16, 2, 16), sizes)


def _check_scratch(
    monkeypatch: pytest.MonkeyPatch, arguments: Arguments, sizes: scratch.Sizes
) -> None:
    allocated_bytes = []
    make = torch.empty

    def recording(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        allocated_bytes.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", recording)
    with override("ssd", "triton"), pytest.MonkeyPatch.context() as context:
        # A state between two slices is dropped when the next but one is made.
        context.setattr(torch, "empty_like", lambda tensor: make(tensor.shape, dtype=tensor.dtype))
        y, state = ssd(**arguments)
    batch, length = arguments["x"].shape[:2]
    passed = 2 * state.nbytes if length > 32 else 0
    formula_bytes = scratch.scratch_bytes(batch, length, sizes)
    assert sum(allocated_bytes) + passed == y.nbytes + state.nbytes + formula_bytes


def test_the_scratch_stops_growing_after_a_slice() -> None:
    sizes = scratch.Sizes(heads=80, groups=1, head_width=64, d_state=128, dtype="bfloat16")

    def at(length: int) -> int:
        return scratch.scratch_bytes(1, length, sizes)

    assert at(8) == 0
    assert at(64) == 2 * 4 * 80 * 64 + 4 * 80 * (128 * 64 + 1) + 4 * 80 + 2 * 64 * 64
    assert at(2 * scratch.SLICE_TOKENS) == at(10**9) < 64 * 2**20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": torch.zeros(2, 3, 3, 5)}, r"C has shape \[2, 3, 2, 5\]; it must be \[2, 3, 3, 5\]"),
        (
            {"B": torch.zeros(2, 3, 3, 5), "C": torch.zeros(2, 3, 3, 5)},
            "B has 3 groups for 4 heads; groups must divide heads",
        ),
        ({"C": torch.zeros(2, 3, 2, 5).half()}, "C has dtype torch.float16; it must be .*float32"),
        ({"A": torch.zeros(4).half()}, "A has dtype torch.float16; it must be torch.float32"),
        ({"D": torch.zeros(4, 2)}, r"D has shape \[4, 2\]; it must be \[4, 3\]"),
        ({"state": torch.zeros(2, 4, 3, 5)}, r"state has shape .* must be \[2, 4, 5, 3\]"),
        (
            {"dt_limit": (0.5, 0.1)},
            r"dt_limit is \(0.5, 0.1\); it must be \(smallest, largest\), from 0 up",
        ),
    ],
)
def test_what_does_not_fit(change: Arguments, message: str) -> None:
    with pytest.raises(ValueError, match=f"^ssd: {message}$"):
        ssd(**{**_arguments(2, 3, 4, 3, 2, 5), **change})
