"""Attention's caches that were given away: written in place, bit for bit what new memory holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.anchor_attention import anchor_attention
from longspan.kernels.attention import window_attention
from longspan.kernels.donation import states_donated
from longspan.kernels.full_attention import full_attention
from tests.kernels.devices import DEVICE_DTYPES

Tensors = tuple[torch.Tensor, ...]
Step = Callable[[Tensors, Tensors], Tensors]  # queries, keys and values; the state before


def _window(new: Tensors, state: Tensors) -> Tensors:
    return window_attention(*new, *state, window=state[0].shape[1] + 1)  # type: ignore[misc]


def _anchors(new: Tensors, state: Tensors) -> Tensors:
    *caches, anchors, entries, flags = state
    return anchor_attention(*new, *caches, anchors, entries, flags)  # type: ignore[arg-type]


def _full(new: Tensors, state: Tensors) -> Tensors:
    return full_attention(*new, *state)  # type: ignore[misc]


# name of the op, the call, tokens of it, entries of the cache, and what follows the caches
CASES: list[tuple[str, Step, int, int, list[list[int]]]] = [
    ("window_attention", _window, 1, 40, [[100]]),
    ("window_attention", _window, 1, 33, [[3]]),
    ("window_attention", _window, 5, 16, [[100]]),
    ("window_attention", _window, 40, 33, [[100]]),
    ("anchor_attention", _anchors, 1, 300, [[250], [299], [0]]),
    ("anchor_attention", _anchors, 1, 300, [[250], [299], [1]]),
    ("anchor_attention", _anchors, 1, 9, [[0], [0], [0]]),
    ("anchor_attention", _anchors, 1, 9, [[3], [9], [1]]),
    ("full_attention", _full, 1, 300, [[299]]),
    ("full_attention", _full, 1, 9, [[0]]),
    ("full_attention", _full, 5, 9, [[3]]),
]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2:]}")
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_in_place_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    case: tuple[str, Step, int, int, list[list[int]]],
    wide: bool,
) -> None:
    kernel = "longspan.kernels.attention.triton_kernel"
    monkeypatch.setattr(f"{kernel}.MOVE_NARROW", (16, 16))
    monkeypatch.setattr(f"{kernel}.MOVE_WIDE", (16, 64))
    monkeypatch.setattr(f"{kernel}.MOVE_PROGRAMS", 1 if wide else 1000)
    op, step, length, entries, counters = case
    heads = (4, 2, 2)
    new = tuple(torch.randn(2, length, each, 24, device=device).to(dtype) for each in heads)
    k, v = (torch.randn(2, entries, 2, 24, device=device).to(dtype) for _ in range(2))
    others = [torch.tensor(each, device=device) for each in counters]
    if op == "anchor_attention":
        others[-1] = others[-1].bool()
    with override(op, "triton"):
        y, next_k, next_v, *after = step(new, (k, v, *others))
        with states_donated():
            donated_y, donated_k, donated_v, *donated_after = step(new, (k, v, *others))
    assert donated_k is k
    assert donated_v is v
    used = entries
    if op == "anchor_attention":
        used = int(after[1])
    elif op == "full_attention":
        used = counters[0][0] + length
    assert torch.equal(donated_y, y)
    assert torch.equal(donated_k[:, :used], next_k[:, :used])
    assert torch.equal(donated_v[:, :used], next_v[:, :used])
    assert [int(each) for each in donated_after] == [int(each) for each in after]


def test_what_is_not_contiguous_stays_as_it_was() -> None:
    new = tuple(torch.randn(1, 1, 2, 24) for _ in range(3))
    k, v = (torch.randn(1, 2, 7, 24).transpose(1, 2) for _ in range(2))
    before = k.clone(), v.clone()
    with override("window_attention", "triton"), states_donated():
        _, next_k, _ = window_attention(*new, k, v, torch.tensor([9]), window=8)  # type: ignore[misc]
    assert next_k is not k
    assert torch.equal(k, before[0])
    assert torch.equal(v, before[1])
