"""Anchor attention: the reference against one masked pass, the kernel against the reference."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.kernels import override
from longspan.kernels.anchor_attention import anchor_attention
from longspan.kernels.anchor_attention.reference import anchor_attention as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES
from tests.tolerances import assert_close

Tensors = tuple[torch.Tensor, ...]


def _mask(is_anchor: list[bool]) -> torch.Tensor:
    """What each token of one pass over all tokens sees."""
    length = len(is_anchor)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    found: list[int] = []
    start = 0
    for anchor in (t for t in range(length) if is_anchor[t]):
        seen[anchor + 1 :, start:anchor] = False
        seen[anchor, found] = False
        found.append(anchor)
        start = anchor + 1
    return seen


def _one_pass(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, flags: list[bool]) -> torch.Tensor:
    """Masked softmax attention over all tokens, dropping nothing, head by head."""
    y = torch.empty_like(q)
    hidden = ~_mask(flags)
    repeats = q.shape[2] // k.shape[2]
    for batch in range(q.shape[0]):
        for head in range(q.shape[2]):
            keys, values = k[batch, :, head // repeats], v[batch, :, head // repeats]
            scores = q[batch, :, head] @ keys.T / q.shape[3] ** 0.5
            y[batch, :, head] = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ values
    return y


def _kept(flags: list[bool]) -> list[int]:
    """The tokens whose keys are in the cache after all of them."""
    last = max((t for t, flag in enumerate(flags) if flag), default=-1)
    return [t for t, flag in enumerate(flags) if flag or t > last]


def _tokens(
    length: int,
    heads: int,
    groups: int,
    width: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
    batch: int = 2,
) -> Tensors:
    shapes = [(batch, length, count, width) for count in (heads, groups, groups)]
    return tuple(torch.randn(shape, device=device).to(dtype) for shape in shapes)


def _flags(length: int, *at: int, device: str = "cpu") -> torch.Tensor:
    flags = torch.zeros(length, dtype=torch.bool, device=device)
    flags[list(at)] = True
    return flags


def _counters(*values: int, device: str = "cpu") -> Tensors:
    return tuple(torch.tensor([value], device=device) for value in values)


def _empty_cache(like: torch.Tensor, capacity: int) -> Tensors:
    """A cache of `capacity` entries without any: NaN wherever nothing was written."""
    shape = (like.shape[0], capacity, *like.shape[2:])
    past_k, past_v = (like.new_full(shape, torch.nan) for _ in range(2))
    return past_k, past_v, *_counters(0, 0, device=str(like.device))


def _in_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    flags: torch.Tensor,
    cuts: list[int],
    cache: Tensors,
) -> tuple[torch.Tensor, Tensors]:
    """The outputs of all calls, joined, and the last cache, cut to its entries."""
    outputs = []
    for start, end in pairwise([0, *cuts, q.shape[1]]):
        part = slice(start, end)
        y, *rest = anchor_attention(q[:, part], k[:, part], v[:, part], *cache, flags[part])
        cache = tuple(rest)
        outputs.append(y)
    past_k, past_v, anchors, entries = cache
    used = int(entries)
    return torch.cat(outputs, dim=1), (past_k[:, :used], past_v[:, :used], anchors, entries)


def _check_dropping(flags: list[bool], cuts: list[int]) -> None:
    """Dropping at every cut is one masked pass; the cache holds what the definition says."""
    q, k, v = _tokens(len(flags), 4, 2, 3, batch=1)
    expected = _one_pass(q, k, v, flags)
    kept = _kept(flags)
    is_anchor = torch.tensor(flags)
    y, (past_k, past_v, anchors, entries) = _in_chunks(
        q, k, v, is_anchor, cuts, _empty_cache(k, len(flags))
    )
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(past_k, k[:, kept])
    assert torch.equal(past_v, v[:, kept])
    assert (int(anchors), int(entries)) == (sum(flags), len(kept))


SEGMENTS = {
    "one token": [False],
    "one anchor": [True],
    "no anchor": [False] * 7,
    "anchors only": [True] * 7,
    "first": [True] + [False] * 6,
    "last": [False] * 6 + [True],
    "two side by side": [False, False, True, True, False, False, False],
    "three segments": [False, True, False, False, True, False, False],
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_dropping_is_one_masked_pass(name: str) -> None:
    flags = SEGMENTS[name]
    everywhere = list(range(1, len(flags)))
    for cuts in ([], everywhere, *([cut] for cut in everywhere)):
        _check_dropping(flags, cuts)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), flags=st.lists(st.booleans(), min_size=1, max_size=24))
def test_every_cut_is_one_masked_pass(data: st.DataObject, flags: list[bool]) -> None:
    cuts = data.draw(st.lists(st.integers(1, max(1, len(flags) - 1)), unique=True).map(sorted))
    _check_dropping(flags, cuts if len(flags) > 1 else [])


# length, heads, groups, width, capacity, anchors and entries in the cache, anchors of the call
CASES = [
    (1, 2, 2, 16, 1, 0, 0, []),
    (1, 6, 2, 24, 9, 3, 8, []),
    (1, 6, 2, 24, 9, 3, 8, [0]),
    (1, 4, 1, 20, 300, 200, 299, []),
    (1, 2, 1, 16, 600, 300, 599, [0]),
    (3, 2, 1, 16, 600, 10, 590, [1]),
    (2, 2, 1, 16, 40, 36, 36, [0]),
    (63, 3, 1, 24, 63, 0, 0, []),
    (64, 2, 2, 16, 90, 5, 26, [63]),
    (35, 6, 2, 24, 40, 20, 31, [0, 1, 2, 15, 32, 33]),
    (65, 2, 1, 33, 70, 2, 5, [64]),
    (33, 2, 1, 16, 80, 40, 70, list(range(33))),
    (40, 2, 2, 16, 100, 0, 60, []),
    (200, 1, 1, 16, 120, 70, 110, [9, 50, 51, 131, 190]),
]
Case = tuple[int, int, int, int, int, int, int, list[int]]


def _arguments(
    case: Case, *, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 2
) -> Tensors:
    """What the op takes; the cache's entries beyond those in use are NaN."""
    length, heads, groups, width, capacity, anchors, entries, at = case
    q, k, v = _tokens(length, heads, groups, width, device=device, dtype=dtype, batch=batch)
    past_k, past_v, *_ = _empty_cache(k, capacity)
    for past in (past_k, past_v):
        past[:, :entries] = torch.randn(past[:, :entries].shape, device=device).to(dtype)
    counters = _counters(anchors, entries, device=device)
    return q, k, v, past_k, past_v, *counters, _flags(length, *at, device=device)


def _check(tensors: Tensors) -> None:
    before = [tensor.clone() for tensor in tensors]
    with override("anchor_attention", "triton"):
        y, new_k, new_v, anchors, entries = anchor_attention(*tensors)
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), old.nan_to_num())
    wide = (tensor.double() for tensor in tensors[:5])
    expected, expected_k, expected_v, *counters = reference(*wide, *tensors[5:])
    assert y.dtype == tensors[0].dtype
    assert_close("anchor_attention", y, expected)
    assert [int(anchors), int(entries)] == [int(counter) for counter in counters]
    for found, wanted in ((new_k, expected_k), (new_v, expected_v)):
        assert found.dtype == tensors[3].dtype
        assert found.shape == tensors[3].shape
        assert torch.equal(found[:, : int(entries)].double(), wanted[:, : int(entries)])
        sources = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        assert found.untyped_storage().data_ptr() not in sources


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(device: str, dtype: torch.dtype, case: Case) -> None:
    _check(_arguments(case, device=device, dtype=dtype, batch=1 if case[0] > 40 else 2))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 96, 128, 256])
@pytest.mark.parametrize(("length", "at"), [(1, []), (1, [0]), (300, [7, 130, 131, 299])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_widths_of_real_heads(dtype: torch.dtype, length: int, at: list[int], width: int) -> None:
    case = (length, 8, 2, width, 400, 90, 200 - length % 7, at)
    _check(_arguments(case, device="cuda", dtype=dtype))


@pytest.mark.parametrize("at", [[0, 15, 16, 31, 40], [33], [47], [48], []], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_flags_of_several_loads(
    monkeypatch: pytest.MonkeyPatch, device: str, at: list[int]
) -> None:
    module = "longspan.kernels.anchor_attention.triton_kernel"
    monkeypatch.setattr(f"{module}.COUNT_TOKENS", 16)
    _check(_arguments((49, 1, 1, 16, 60, 4, 9, at), device=device, batch=1))


@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str) -> None:
    case = (9, 4, 2, 24, 14, 3, 5, [2, 6])
    q, k, v, past_k, past_v, *rest = _arguments(case, device=device)
    packed = torch.cat([q, k, v], dim=2)
    for tensor in (packed, packed.transpose(1, 3).contiguous().transpose(1, 3)):
        split = torch.split(tensor, [4, 2, 2], dim=2)
        pasts = (past.transpose(1, 2).contiguous().transpose(1, 2) for past in (past_k, past_v))
        _check((*split, *pasts, *rest))
    flags = rest[-1].repeat_interleave(2)[::2]
    _check((q, k, v, past_k, past_v, *rest[:-1], flags))


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_narrow_cache_rounds_before_use(device: str, implementation: str) -> None:
    q, k, v = _tokens(20, 4, 2, 16, device=device, dtype=torch.float32)
    flags = _flags(20, 3, 11, 12, device=device)
    past = torch.zeros(2, 20, 2, 16, dtype=torch.float16, device=device)
    cache = (past, past, *_counters(0, 0, device=device))
    with override("anchor_attention", implementation):
        whole, _ = _in_chunks(q, k, v, flags, [], cache)
        y, (new_k, *_) = _in_chunks(q, k, v, flags, [2, 5, 13], cache)
    assert y.dtype == torch.float32
    assert new_k.dtype == torch.float16
    assert_close("anchor_attention", y, whole)
    rounded = (tensor.half().double().cpu() for tensor in (k, v))
    assert_close("anchor_attention", y, _one_pass(q.double().cpu(), *rounded, flags.tolist()))


@pytest.mark.parametrize("cuts", [list(range(1, 10)), [3, 4, 7], [9]], ids=str)
@pytest.mark.parametrize("at", [[], [0, 5], [2, 3, 9]], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_one_pass(device: str, at: list[int], cuts: list[int]) -> None:
    q, k, v = _tokens(10, 2, 1, 16, device=device, dtype=torch.float32, batch=1)
    flags = _flags(10, *at, device=device)
    with override("anchor_attention", "triton"):
        y, (new_k, new_v, *_) = _in_chunks(q, k, v, flags, cuts, _empty_cache(k, 10))
    wide = (tensor.double().cpu() for tensor in (q, k, v))
    assert_close("anchor_attention", y, _one_pass(*wide, flags.tolist()))
    kept = _kept(flags.tolist())
    assert torch.equal(new_k, k[:, kept])
    assert torch.equal(new_v, v[:, kept])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 3, 5, 8)}, "5 query heads are no multiple of 2 key heads"),
        ({2: torch.zeros(2, 3, 4, 8)}, r"v has shape \[2, 3, 4, 8\]; it must be \[2, 3, 2, 8\]"),
        ({4: torch.zeros(2, 6, 2, 8)}, r"past_v has shape .*; it must be \[2, 7, 2, 8\]"),
        ({5: torch.tensor(2)}, r"anchors has shape \[\]; it must be \[1\]"),
        ({6: torch.tensor([4.0])}, "entries has dtype torch.float32; it must be torch.int64"),
        ({7: torch.zeros(4).bool()}, r"is_anchor has shape \[4\]; it must be \[3\]"),
        ({7: torch.zeros(3)}, "is_anchor has dtype torch.float32; it must be torch.bool"),
        ({1: torch.zeros(2, 3, 2, 8).half()}, "k has dtype torch.float16; it must be .*float32"),
        ({4: torch.zeros(2, 7, 2, 8).half()}, "past_v has dtype torch.float16; .*float32"),
        (
            {5: torch.tensor([5])},
            (
                "anchors is 5 and entries is 4, in a cache of 7; it must be that 0 <= anchors <= "
                "entries <= capacity"
            ),
        ),
        (
            {6: torch.tensor([6])},
            (
                "6 entries and 3 tokens with 0 anchors leave 9 entries to keep, in a cache of 7; "
                "give past_k and past_v at least 9"
            ),
        ),
        (
            {5: torch.tensor([6]), 6: torch.tensor([7]), 7: torch.tensor([True, False, False])},
            (
                "7 entries and 3 tokens with 1 anchors leave 9 entries to keep, in a cache of 7; "
                "give past_k and past_v at least 9"
            ),
        ),
    ],
)
def test_what_does_not_fit(change: dict[int, torch.Tensor], message: str) -> None:
    tensors = dict(enumerate(_arguments((3, 4, 2, 8, 7, 2, 4, []))))
    with pytest.raises(ValueError, match=f"^anchor_attention: {message}$"):
        anchor_attention(*(tensors | change).values())


@pytest.mark.gpu
@pytest.mark.slow
def test_offsets_beyond_int32() -> None:
    """Queries and new keys, then the cache, of 2.4 x 10^9 elements each."""
    length, heads, width = 600_000, 32, 128
    q, k, v = _tokens(length, heads, heads, width, device="cuda", dtype=torch.bfloat16, batch=1)
    q *= 4  # Few keys weigh much, so that y is no mean of thousands, which is zero.
    flags = torch.arange(length, device="cuda") % 128 == 127
    cache = _empty_cache(k, 5000)
    with override("anchor_attention", "triton"):
        y, new_k, new_v, anchors, entries = anchor_attention(q, k, v, *cache, flags)
        cut = length - 50
        _, *cache_before = anchor_attention(q[:, :cut], k[:, :cut], v[:, :cut], *cache, flags[:cut])
    wide = (tensor[:, cut:].double() for tensor in (q, k, v))
    before_k, before_v, *counters = cache_before
    expected, expected_k, *_ = reference(
        *wide, before_k.double(), before_v.double(), *counters, flags[cut:]
    )
    assert_close("anchor_attention", y[:, cut:], expected)
    assert torch.equal(new_k[:, : int(entries)].double(), expected_k[:, : int(entries)])

    del y, new_k, new_v, anchors, before_k, before_v, cache_before, expected, expected_k
    few = (tensor[:, :5].clone() for tensor in (q, k, v))
    del q
    tensors = (*few, k, v, *_counters(length - 20, length - 10, device="cuda"), flags[:5])
    with override("anchor_attention", "triton"):
        y, new_k, _, _, entries = anchor_attention(*tensors)
    last = (tensor[:, :, -1:].double() for tensor in tensors[:5])
    expected, expected_k, *_ = reference(*last, *tensors[5:])
    assert_close("anchor_attention", y[:, :, -1:], expected)
    kept = slice(length - 30, int(entries))
    assert torch.equal(new_k[:, kept, -1:].double(), expected_k[:, kept])
