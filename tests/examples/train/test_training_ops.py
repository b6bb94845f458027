"""What trains gives what longspan's references give: outputs, final states, gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from math import inf
from typing import Any

import attention_blocks
import conba_chunks
import ops
import pytest
import ssd_chunks
import torch

from longspan.kernels.add_norm import reference as add_norm
from longspan.kernels.anchor_attention import reference as anchor_attention
from longspan.kernels.attention import reference as window_attention
from longspan.kernels.causal_conv import reference as causal_conv
from longspan.kernels.conba import ConbaState
from longspan.kernels.conba import reference as conba
from longspan.kernels.full_attention import reference as full_attention
from longspan.kernels.ssd import reference as ssd
from longspan.kernels.swiglu import reference as swiglu

LENGTHS = [1, 2, 31, 64, 65, 150]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def results(value: Any) -> list[torch.Tensor]:
    """All tensors of a result, in order."""
    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, ConbaState):
        value = [getattr(value, field.name) for field in fields(value)]
    return [tensor for each in value for tensor in results(each)]


def assert_same(
    found: Callable[..., Any], expected: Callable[..., Any], inputs: list[torch.Tensor]
) -> None:
    """Equal results and equal gradients of a random sum of all results, in float64."""
    leaves = [[tensor.clone().requires_grad_() for tensor in inputs] for _ in range(2)]
    values = [
        results(function(*some)) for function, some in zip((found, expected), leaves, strict=True)
    ]
    for mine, want in zip(*values, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-10)
    weights = [torch.randn_like(tensor) for tensor in values[0] if tensor.is_floating_point()]
    for some in values:
        floats = [tensor for tensor in some if tensor.is_floating_point()]
        total = sum((w * t).sum() for w, t in zip(weights, floats, strict=True))
        torch.autograd.backward(total)
    for mine, want in zip(*leaves, strict=True):
        torch.testing.assert_close(mine.grad, want.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("groups", "skip", "limit"),
    [(1, (4,), (0.0, inf)), (2, (4, 3), (0.0, 0.3)), (4, None, (0.05, inf))],
)
def test_ssd(
    length: int, groups: int, skip: tuple[int, ...] | None, limit: tuple[float, float]
) -> None:
    inputs = [
        random(2, length, 4, 3), random(2, length, 4), -random(4).exp(),
        random(2, length, groups, 5), random(2, length, groups, 5), random(2, 4, 5, 3), random(4),
    ]  # fmt: skip
    if skip is not None:
        inputs.append(random(*skip))

    def run(op: Callable[..., Any], *tensors: torch.Tensor) -> Any:
        x, dt, A, B, C, state, bias, *D = tensors
        skip = D[0] if D else None
        return op(x, dt, A, B, C, D=skip, dt_bias=bias, dt_limit=limit, state=state)

    assert_same(partial(run, ssd_chunks.ssd), partial(run, ssd.ssd), inputs)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("delay", [1, 2])
def test_conba_without_a_gain(length: int, delay: int) -> None:
    inputs = [
        random(2, length, 2, 3), random(2, length, 2, 3).sigmoid(), random(2, length, 2, 4),
        random(2, 3), random(2, 4, 3), random(2, 4), random(2, 2, 3), random(2, delay, 2, 3),
    ]  # fmt: skip

    def run(op: Callable[..., Any], *tensors: torch.Tensor) -> Any:
        s, a, u, w_tau, C, D, x, past = tensors
        return op(
            s, a, u, None, w_tau, C, D, state=ConbaState(x=x, delay=past),
            activation="identity", update_every=None, eta=0.01, k_max=1.0,
        )  # fmt: skip

    assert_same(partial(run, conba_chunks.conba), partial(run, conba.conba), inputs)


def test_conba_with_a_gain_is_the_reference() -> None:
    length = 5
    inputs = [
        random(1, length, 2, 3), random(1, length, 2, 3).sigmoid(), random(1, length, 2, 4),
        random(1, length, 2, 4), random(2, 3), random(2, 4, 3), random(2, 4), random(1, 2, 3),
        random(1, 1, 2, 3), random(1, 2, 3, 4), random(1, 2, 4),
    ]  # fmt: skip

    def run(op: Callable[..., Any], *tensors: torch.Tensor) -> Any:
        *rest, x, past, gain, error = tensors
        return op(
            *rest, state=ConbaState(x=x, delay=past, gain=gain, error=error),
            activation="tanh", update_every=1, eta=0.01, k_max=1.0,
        )  # fmt: skip

    assert_same(partial(run, conba_chunks.conba), partial(run, conba.conba), inputs)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 40])
@pytest.mark.parametrize(("window", "position"), [(1, 0), (8, 0), (8, 3), (8, 100), (64, 20)])
def test_window_attention(length: int, window: int, position: int) -> None:
    inputs = [
        random(2, length, 4, 6), random(2, length, 2, 6), random(2, length, 2, 6),
        random(2, window - 1, 2, 6), random(2, window - 1, 2, 6),
    ]  # fmt: skip
    read = torch.tensor([position])

    def run(op: Callable[..., Any], *tensors: torch.Tensor) -> Any:
        return op(*tensors, read, window=window)

    found = partial(run, attention_blocks.window_attention)
    assert_same(found, partial(run, window_attention.window_attention), inputs)


@pytest.mark.parametrize(("length", "capacity", "position"), [(1, 1, 0), (9, 9, 0), (5, 20, 11)])
def test_full_attention(length: int, capacity: int, position: int) -> None:
    inputs = [
        random(2, length, 4, 6), random(2, length, 2, 6), random(2, length, 2, 6),
        random(2, capacity, 2, 6), random(2, capacity, 2, 6),
    ]  # fmt: skip
    read = torch.tensor([position])

    def run(op: Callable[..., Any], *tensors: torch.Tensor) -> Any:
        return op(*tensors, read)

    found = partial(run, attention_blocks.full_attention)
    assert_same(found, partial(run, full_attention.full_attention), inputs)


def test_attention_through_anchors_row_by_row() -> None:
    rows, length, anchor = 3, 40, 9
    tokens = torch.randint(8, (rows, length))
    for row, places in zip(tokens, ([3, 4, 20], [0, 39], []), strict=True):
        row[places] = anchor
    seen = attention_blocks.seen_through_anchors(tokens, anchor)
    q, k, v = random(rows, length, 4, 6), random(rows, length, 2, 6), random(rows, length, 2, 6)
    past, zero = torch.zeros(rows, length, 2, 6, dtype=torch.float64), torch.tensor([0])
    y, _, _ = attention_blocks.full_attention(q, k, v, past, past, zero, seen=seen)
    for i in range(rows):
        own = (tensor[i : i + 1] for tensor in (q, k, v, past, past))
        want = anchor_attention.anchor_attention(*own, zero, zero, tokens[i] == anchor)[0]
        torch.testing.assert_close(y[i : i + 1], want)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("added", [True, False])
def test_add_norm(kind: str, added: bool) -> None:
    inputs = [random(2, 5, 6), random(6), random(6), *([random(2, 5, 6)] if added else [])]

    def run(op: Callable[..., Any], *tensors: torch.Tensor) -> Any:
        x, weight, bias, *y = tensors
        return op(x, y[0] if y else None, weight, bias, kind=kind, eps=1e-5, dtype=x.dtype)

    assert_same(partial(run, ops.add_norm), partial(run, add_norm.add_norm), inputs)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_causal_conv(length: int) -> None:
    inputs = [random(2, length, 3), random(3, 1, 4), random(3), random(2, 3, 3)]
    run = partial(ops.causal_conv, activation="silu")
    assert_same(run, partial(causal_conv.causal_conv, activation="silu"), inputs)


def test_swiglu() -> None:
    assert_same(ops.swiglu, swiglu.swiglu, [random(2, 5, 6), random(2, 5, 6)])
