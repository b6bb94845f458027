"""Rows in int8: the bound of their error, quantizing twice, and what attention makes of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.kernels import override
from longspan.kernels.attention.int8_rows import (
    Int8Rows,
    dequantize_rows,
    quantize_rows,
    tensors_of,
)
from longspan.kernels.donation import states_donated
from longspan.kernels.full_attention import full_attention
from tests.kernels.devices import DEVICE_DTYPES, DEVICES
from tests.kernels.int8_cases import CASES, IN_PLACE, Case, case, equal, widened
from tests.tolerances import assert_close

KEPT = [torch.float32, torch.float16, torch.bfloat16]
each_kept = pytest.mark.parametrize("kept", KEPT, ids=str)
# A scale is rounded to the dtype, and takes the steps with it.
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@each_kept
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_no_number_is_off_by_more_than_half_a_step(kept: torch.dtype, size: float) -> None:
    x = size * torch.randn(2, 50, 3, 24, dtype=torch.float64)
    rows = quantize_rows(x, kept)
    assert rows.values.dtype == torch.int8
    assert rows.scale.dtype == kept
    largest = x.abs().amax(-1, keepdim=True)
    error = (dequantize_rows(rows, torch.float64) - x).abs() / largest
    assert float(error.max()) <= 1.001 / 254 + ROUNDING[kept]


@each_kept
def test_what_is_written_down_and_quantized_again_is_the_same(kept: torch.dtype) -> None:
    sizes = 10 ** torch.linspace(-3, 3, 60)[:, None, None]
    rows = quantize_rows(sizes * torch.randn(1, 60, 40, 64), kept)
    again = quantize_rows(dequantize_rows(rows, kept), kept)
    assert torch.equal(again.values, rows.values)
    assert torch.equal(again.scale, rows.scale)


@given(row=st.lists(st.floats(-60000, 60000, width=16), min_size=1, max_size=9))
def test_every_row_of_float16_has_a_bounded_error(row: list[float]) -> None:
    x = torch.tensor(row, dtype=torch.float16).view(1, 1, 1, -1)
    found = dequantize_rows(quantize_rows(x, torch.float16), torch.float32)
    largest = float(x.abs().max())
    assert float((found - x).abs().max()) <= largest / 253.9 + 2**-25


def test_zeros_stay_and_nan_spreads_over_its_row_alone() -> None:
    x = torch.zeros(1, 3, 1, 4)
    x[0, 1, 0, 2], x[0, 2, 0] = float("nan"), torch.tensor([1.0, -2.0, 0.5, 0.0])
    found = dequantize_rows(quantize_rows(x, torch.float32), torch.float32)
    assert torch.equal(found[0, 0], x[0, 0])
    assert bool(found[0, 1].isnan().all())
    torch.testing.assert_close(found[0, 2], x[0, 2], rtol=0, atol=2 / 253)


@pytest.mark.parametrize("each", CASES, ids=str)
def test_the_reference_attends_to_what_the_rows_stand_for(each: Case) -> None:
    """The int8 caches give what float caches of the same numbers do, and hold the same."""
    q, k, v, past_k, past_v, *rest = (widened(argument) for argument in each.arguments())
    kept = past_k.scale.dtype
    new_k, new_v = (dequantize_rows(quantize_rows(new, kept), torch.float64) for new in (k, v))
    pasts = (dequantize_rows(past, torch.float64) for past in (past_k, past_v))
    expected, *wide = each.call((q, new_k, new_v, *pasts, *rest))
    y, *after = each.call((q, k, v, past_k, past_v, *rest))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    used = each.used_after((y, *after))
    for found, wanted in zip(after[:2], wide[:2], strict=True):
        numbers = dequantize_rows(found, torch.float64)[:, used]
        torch.testing.assert_close(numbers, wanted[:, used], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("each", CASES, ids=str)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(device: str, dtype: torch.dtype, each: Case) -> None:
    check(each, device=device, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize("op", ["window_attention", "full_attention", "anchor_attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_widths_of_real_heads(dtype: torch.dtype, op: str, length: int, width: int) -> None:
    anchors = (90, (7, 130, 131, 299) if length > 1 else ())
    each = case(op, length, 2000, 1700, anchors=anchors, heads=8, groups=2, width=width)
    check(each, device="cuda", dtype=dtype)


def check(each: Case, *, device: str, dtype: torch.dtype) -> None:
    """The kernel against the reference in float64."""
    arguments = each.arguments(device=device, dtype=dtype, batch=1 if each.length > 30 else 2)
    before = [tensor.clone() for rows in arguments for tensor in tensors_of(rows)]
    with override(each.op, "triton"):
        y, next_k, next_v, *counters = each.call(arguments)
    for tensor, old in zip(
        (t for rows in arguments for t in tensors_of(rows)), before, strict=True
    ):
        assert torch.equal(tensor.nan_to_num(), old.nan_to_num())
    expected = each.call(tuple(widened(argument) for argument in arguments))
    assert y.dtype == dtype
    assert_close(each.op, y, expected[0])
    assert [int(each) for each in counters] == [int(each) for each in expected[3:]]
    used = each.used_after(expected)
    for found, wanted in ((next_k, expected[1]), (next_v, expected[2])):
        assert all(tensor.is_contiguous() for tensor in found)
        assert equal(found, wanted, used)


@pytest.mark.parametrize("each", IN_PLACE, ids=str)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_in_place_is_the_same(device: str, dtype: torch.dtype, each: Case) -> None:
    arguments = each.arguments(device=device, dtype=dtype)
    given = arguments[3], arguments[4]
    with override(each.op, "triton"):
        y, next_k, next_v, *counters = each.call(arguments)
        with states_donated():
            donated_y, donated_k, donated_v, *_ = each.call(arguments)
    for found, past in ((donated_k, given[0]), (donated_v, given[1])):
        assert found.values is past.values
        assert found.scale is past.scale
    used = each.used_after((y, next_k, next_v, *counters))
    assert torch.equal(donated_y, y)
    assert equal(donated_k, next_k, used)
    assert equal(donated_v, next_v, used)


@pytest.mark.parametrize("cuts", [[1] * 12, [3, 1, 6, 2]], ids=str)
@pytest.mark.parametrize("op", ["window_attention", "full_attention", "anchor_attention"])
@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_one_pass(device: str, implementation: str, op: str, cuts: list[int]) -> None:
    every = tuple(range(4, 12, 5)) if op == "anchor_attention" else ()
    each = case(op, 12, 5 if op == "window_attention" else 14, 0, anchors=(0, every))
    arguments = each.arguments(device=device, batch=1)
    if implementation == "reference":
        arguments = tuple(widened(argument) for argument in arguments)
    with override(op, implementation):
        expected = each.call(arguments)
        found = in_chunks(each, arguments, cuts)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    used = each.used_after(expected)
    assert equal(found[1], expected[1], used)
    assert equal(found[2], expected[2], used)


def in_chunks(each: Case, arguments: tuple[object, ...], cuts: list[int]) -> tuple[object, ...]:
    """The outputs of all calls, joined, and the last state."""
    *new, past_k, past_v, counter = arguments[:6]
    state, start, outputs = [past_k, past_v, counter], 0, []
    flags = arguments[7] if each.op == "anchor_attention" else None
    if flags is not None:
        state.append(arguments[6])
    for length in cuts:
        part = [tensor[:, start : start + length] for tensor in new]  # type: ignore[index]
        asked = () if flags is None else (flags[start : start + length],)  # type: ignore[index]
        y, *after = each.call((*part, *state, *asked))
        outputs.append(y)
        start += length
        state = after if flags is not None else [*after, state[2] + length]  # type: ignore[operator]
    return torch.cat(outputs, dim=1), *state


@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str) -> None:
    """Keys and values cut out of what was projected, and caches that do not lie contiguous."""
    for op, entries in (("window_attention", 8), ("full_attention", 20), ("anchor_attention", 20)):
        each = case(op, 9, entries, 5, anchors=(2, (3,)))
        arguments = each.arguments(device=device)
        packed = torch.cat(arguments[:3], dim=2)
        q, k, v = torch.split(packed, [each.heads, each.groups, each.groups], dim=2)
        turned = [
            Int8Rows(
                rows.values.transpose(1, 2).contiguous().transpose(1, 2),
                rows.scale.transpose(1, 2).contiguous().transpose(1, 2),
            )
            for rows in arguments[3:5]
        ]
        with override(op, "triton"):
            expected = each.call(arguments)
            found = each.call((q, k, v, *turned, *arguments[5:]))
        used = each.used_after(expected)
        torch.testing.assert_close(found[0], expected[0])
        assert equal(found[1], expected[1], used)
        assert equal(found[2], expected[2], used)


@pytest.mark.parametrize("op", ["window_attention", "full_attention", "anchor_attention"])
def test_how_far_attention_is_from_that_of_unquantized_rows(op: str) -> None:
    """Random keys and values of size one, float64: some 0.5% of the output's size."""
    each = case(op, 64, 600, 512, anchors=(40, (20,)), heads=8, groups=2, width=64)
    arguments = [widened(argument) for argument in each.arguments()]
    q, rest = arguments[0], arguments[5:]
    numbers = [torch.randn(2, 600, 2, 64, dtype=torch.float64) for _ in "kv"]
    k, v = (torch.randn(2, 64, 2, 64, dtype=torch.float64) for _ in "kv")
    rows = [quantize_rows(past, torch.float32) for past in numbers]
    exact, *_ = each.call((q, k, v, *numbers, *rest))
    found, *_ = each.call((q, k, v, *rows, *rest))
    error = float((found - exact).norm() / exact.norm())
    assert 1e-3 < error < 1.5e-2


def test_wrong_rows_are_refused_by_name() -> None:
    q, k, v, past_k, past_v, at = case("full_attention", 3, 7, 4).arguments()
    wrong = past_v._replace(scale=past_v.scale[:, 1:])
    with pytest.raises(ValueError, match=r"past_v\.scale has shape \[2, 6, 2\]; it must be \[2, 7"):
        full_attention(q, k, v, past_k, wrong, at)
    wrong = past_k._replace(values=past_k.values.int())
    with pytest.raises(
        ValueError, match=r"past_k\.values has dtype torch\.int32; it must be .*int8"
    ):
        full_attention(q, k, v, wrong, past_v, at)
    mixed = (
        "full_attention: past_k is Int8Rows and past_v a tensor of torch.float32; both or neither"
    )
    with pytest.raises(ValueError, match=mixed):
        full_attention(q, k, v, past_k, torch.zeros(2, 7, 2, 24), at)


@pytest.mark.parametrize("each", [CASES[1], CASES[5], CASES[8]], ids=str)
def test_a_graph_is_refused(monkeypatch: pytest.MonkeyPatch, each: Case) -> None:
    monkeypatch.setattr("torch.onnx.is_in_onnx_export", lambda: True)
    with pytest.raises(ValueError, match="past_k is in int8; a graph keeps it in a float dtype"):
        each.call(each.arguments())
