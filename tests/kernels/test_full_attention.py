"""Full attention over caches: the reference against torch's own, the kernel against it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from longspan.kernels import override
from longspan.kernels.attention.scratch import count_splits, scratch_bytes
from longspan.kernels.full_attention import full_attention
from longspan.kernels.full_attention.reference import full_attention as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES
from tests.tolerances import assert_close

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Case = tuple[int, int, int, int, int, int]

# length, capacity, position, heads, groups, width
CASES: list[Case] = [
    (1, 1, 0, 2, 2, 16),
    (1, 9, 8, 6, 2, 24),
    (1, 64, 63, 4, 1, 20),
    (2, 7, 0, 2, 1, 16),
    (63, 130, 65, 3, 1, 24),
    (64, 70, 4, 2, 2, 16),
    (65, 130, 64, 6, 2, 24),
    (33, 100, 20, 2, 1, 33),
    # Cut into splits: a past shorter than one, one that ends in the middle, a full one.
    (1, 600, 3, 4, 2, 16),
    (1, 1100, 700, 6, 2, 24),
    (3, 1031, 1028, 2, 1, 20),
    (130, 600, 300, 1, 1, 16),
]


def _tensors(
    case: Case, *, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 2
) -> Tensors:
    """Random tensors; cache entries that are not in use are NaN."""
    length, capacity, position, heads, groups, width = case
    shapes = [(length, heads), (length, groups), (length, groups)] + [(capacity, groups)] * 2
    q, k, v, past_k, past_v = (
        torch.randn(batch, tokens, count, width, device=device).to(dtype)
        for tokens, count in shapes
    )
    past_k[:, position:], past_v[:, position:] = float("nan"), float("nan")
    return q, k, v, past_k, past_v


def _check(tensors: Tensors, position: int) -> None:
    at = torch.tensor([position], device=tensors[0].device)
    before = [tensor.clone() for tensor in tensors]
    with override("full_attention", "triton"):
        y, new_k, new_v = full_attention(*tensors, at)
    expected, expected_k, expected_v = reference(*(tensor.double() for tensor in tensors), at)
    assert y.dtype == tensors[0].dtype
    assert_close("full_attention", y, expected)
    used = position + tensors[0].shape[1]
    for found, wanted in ((new_k, expected_k), (new_v, expected_v)):
        assert found.is_contiguous()
        assert found.shape == wanted.shape
        assert torch.equal(found[:, :used].double(), wanted[:, :used])
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), old.nan_to_num())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_torchs(case: Case) -> None:
    length, _, position, heads, groups, _ = case
    q, k, v, past_k, past_v = (tensor.double() for tensor in _tensors(case))
    keys, values = (
        torch.cat([past[:, :position], new], dim=1) for past, new in ((past_k, k), (past_v, v))
    )
    repeated_k, repeated_v = (
        each.repeat_interleave(heads // groups, dim=2).transpose(1, 2) for each in (keys, values)
    )
    mask = torch.ones(length, position + length, dtype=torch.bool).tril(position)
    expected = scaled_dot_product_attention(q.transpose(1, 2), repeated_k, repeated_v, mask)
    y, new_k, new_v = reference(q, k, v, past_k, past_v, torch.tensor([position]))
    torch.testing.assert_close(y, expected.transpose(1, 2))
    for found, wanted in ((new_k, keys), (new_v, values)):
        assert torch.equal(found[:, : position + length], wanted)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(device: str, dtype: torch.dtype, case: Case) -> None:
    _check(_tensors(case, device=device, dtype=dtype), position=case[2])


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 96, 128, 256])
@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_widths_of_real_heads(dtype: torch.dtype, length: int, width: int) -> None:
    case = (length, 9000, 5000, 8, 2, width)
    _check(_tensors(case, device="cuda", dtype=dtype), position=5000)


@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str) -> None:
    packed = torch.randn(2, 9, 8, 24, device=device)
    past = torch.randn(2, 2, 14, 24, device=device).transpose(1, 2)
    for tensor in (packed, packed.transpose(1, 3).contiguous().transpose(1, 3)):
        q, k, v = torch.split(tensor, [4, 2, 2], dim=2)
        _check((q, k, v, past, past + 1), position=3)


@pytest.mark.parametrize("cuts", [[1] * 12, [3, 1, 6, 2], [11, 1]], ids=str)
@pytest.mark.parametrize("capacity", [12, 530])
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_one_pass(device: str, capacity: int, cuts: list[int]) -> None:
    q, k, v, past_k, past_v = _tensors((12, capacity, 0, 4, 2, 16), device=device, batch=1)
    start = torch.zeros(1, dtype=torch.int64, device=device)
    with override("full_attention", "triton"):
        whole, whole_k, whole_v = full_attention(q, k, v, past_k, past_v, start)
        outputs = []
        parts = [torch.split(each, cuts, dim=1) for each in (q, k, v)]
        for new_q, new_k, new_v in zip(*parts, strict=True):
            y, past_k, past_v = full_attention(new_q, new_k, new_v, past_k, past_v, start)
            outputs.append(y)
            start = start + new_q.shape[1]
    assert_close("full_attention", torch.cat(outputs, dim=1), whole)
    assert torch.equal(past_k[:, :12], whole_k[:, :12])
    assert torch.equal(past_v[:, :12], whole_v[:, :12])


@pytest.mark.parametrize("past_dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_cache_may_be_narrower_than_the_computation(past_dtype: torch.dtype) -> None:
    q, k, v, past_k, past_v = _tensors((3, 8, 4, 2, 1, 16))
    k, v = k.to(past_dtype).float(), v.to(past_dtype).float()
    past_k, past_v = past_k.to(past_dtype), past_v.to(past_dtype)
    y, new_k, _ = full_attention(q, k, v, past_k, past_v, torch.tensor([4]))
    wide, wide_k, _ = reference(q, k, v, past_k.float(), past_v.float(), torch.tensor([4]))
    assert new_k.dtype == past_dtype
    assert torch.equal(new_k[:, :7].float(), wide_k[:, :7])
    assert torch.equal(y, wide)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (4, "full_attention: the caches have room for 6 entries; 4 are in use, and 3 more"),
        (2**40, "full_attention: the caches have room for 6 entries; 1099511627776 are in use"),
    ],
)
def test_a_full_cache_is_refused(position: int, message: str) -> None:
    q, k, v, past_k, past_v = _tensors((3, 6, 0, 2, 1, 16))
    with pytest.raises(ValueError, match=message):
        full_attention(q, k, v, past_k, past_v, torch.tensor([position]))


def test_wrong_tensors_are_refused_by_name() -> None:
    q, k, v, past_k, past_v = _tensors((3, 6, 0, 2, 1, 16))
    at = torch.tensor([0])
    with pytest.raises(ValueError, match=r"full_attention: past_v has shape \[2, 5, 1, 16\]"):
        full_attention(q, k, v, past_k, past_v[:, 1:], at)
    with pytest.raises(ValueError, match="2 query heads are no multiple of 3 key heads"):
        full_attention(q, k.expand(2, 3, 3, 16), v, past_k, past_v, at)
    with pytest.raises(ValueError, match=r"position has dtype torch\.int32"):
        full_attention(q, k, v, past_k, past_v, at.int())


@pytest.mark.parametrize("capacity", [1, 255, 256, 10_000, 10**6])
@pytest.mark.parametrize("rows", [16, 64, 128])
@pytest.mark.parametrize("programs", [1, 2, 3, 8, 129, 1000])
def test_splits_stay_within_their_scratch(programs: int, rows: int, capacity: int) -> None:
    splits = count_splits(programs, rows, capacity)
    assert splits & (splits - 1) == 0
    assert splits == 1 or splits * 128 <= capacity
    width = 128
    taken = splits * programs * rows * (width + 2) * 4 if splits > 1 else 0
    assert taken <= scratch_bytes(width)
