"""Window attention: the reference against torch's own, the kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from longspan.kernels import override
from longspan.kernels.attention import window_attention
from longspan.kernels.attention.reference import window_attention as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES
from tests.tolerances import assert_close

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

# length, window, position, heads, groups, width
CASES = [
    (1, 1, 0, 2, 2, 16),
    (1, 5, 3, 6, 2, 24),
    (1, 64, 1000, 4, 1, 20),
    (2, 2, 0, 2, 1, 16),
    (63, 64, 0, 3, 1, 24),
    (64, 5, 4, 2, 2, 16),
    (65, 64, 63, 6, 2, 24),
    (65, 1, 9, 2, 1, 16),
    (33, 200, 20, 2, 1, 33),
    (300, 200, 1000, 2, 1, 16),
    # Cut into splits: a full past, one that ends in the middle of a split, an empty one.
    (1, 600, 1000, 4, 2, 16),
    (3, 300, 120, 2, 1, 24),
    (1, 300, 0, 2, 1, 20),
    (1000, 64, 7, 1, 1, 16),
]


def _tensors(
    case: tuple[int, int, int, int, int, int],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
) -> Tensors:
    length, window, _, heads, groups, width = case
    shapes = [(length, heads), (length, groups), (length, groups)] + [(window - 1, groups)] * 2
    q, k, v, past_k, past_v = (
        torch.randn(batch, tokens, count, width, device=device).to(dtype)
        for tokens, count in shapes
    )
    return q, k, v, past_k, past_v


def _check(tensors: Tensors, position: int, window: int) -> None:
    at = torch.tensor([position], device=tensors[0].device)
    with override("window_attention", "triton"):
        y, past_k, past_v = window_attention(*tensors, at, window=window)
    q, k, v, old_k, old_v = (tensor.double() for tensor in tensors)
    expected, expected_k, expected_v = reference(q, k, v, old_k, old_v, at, window=window)
    assert y.dtype == tensors[0].dtype
    assert_close("window_attention", y, expected)
    for found, wanted in ((past_k, expected_k), (past_v, expected_v)):
        assert found.is_contiguous()
        assert torch.equal(found.double(), wanted)
        sources = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        assert window == 1 or found.untyped_storage().data_ptr() not in sources


@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_reference_is_torchs(case: tuple[int, int, int, int, int, int]) -> None:
    length, window, position, heads, groups, _ = case
    q, k, v, past_k, past_v = (tensor.double() for tensor in _tensors(case))
    repeated_k, repeated_v = (
        torch.cat([past, new], dim=1).repeat_interleave(heads // groups, dim=2).transpose(1, 2)
        for past, new in ((past_k, k), (past_v, v))
    )
    mask = torch.zeros(length, length + window - 1, dtype=torch.bool)
    for i in range(length):
        for key_position in range(max(0, position + i - window + 1), position + i + 1):
            mask[i, key_position - position + window - 1] = True
    expected = scaled_dot_product_attention(q.transpose(1, 2), repeated_k, repeated_v, mask)
    y, _, _ = reference(q, k, v, past_k, past_v, torch.tensor([position]), window=window)
    torch.testing.assert_close(y, expected.transpose(1, 2))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(device: str, dtype: torch.dtype, case: tuple[int, int, int, int, int, int]) -> None:
    batch = 1 if case[0] >= 300 else 2
    tensors = _tensors(case, device=device, dtype=dtype, batch=batch)
    _check(tensors, position=case[2], window=case[1])


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 96, 128, 256])
@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_widths_of_real_heads(dtype: torch.dtype, length: int, width: int) -> None:
    case = (length, 129, 500, 8, 2, width)
    _check(_tensors(case, device="cuda", dtype=dtype), position=500, window=129)


@pytest.mark.parametrize("device", DEVICES)
def test_views(device: str) -> None:
    packed = torch.randn(2, 9, 8, 24, device=device)
    q, k, v = torch.split(packed, [4, 2, 2], dim=2)
    past = torch.randn(2, 2, 4, 24, device=device).transpose(1, 2)
    _check((q, k, v, past, past + 1), position=3, window=5)
    turned = packed.transpose(1, 3).contiguous().transpose(1, 3)
    q, k, v = torch.split(turned, [4, 2, 2], dim=2)
    _check((q, k, v, past, past + 1), position=3, window=5)


@pytest.mark.parametrize("device", DEVICES)
def test_the_past_that_was_never_written_is_not_read(device: str) -> None:
    case = (3, 6, 2, 2, 1, 16)
    q, k, v, past_k, past_v = _tensors(case, device=device)
    position = torch.tensor([2], device=device)
    past_k[:, :3], past_v[:, :3] = float("nan"), float("nan")
    with override("window_attention", "triton"):
        y, _, _ = window_attention(q, k, v, past_k, past_v, position, window=6)
    zeroed = (past_k.nan_to_num(), past_v.nan_to_num())
    expected, _, _ = reference(q, k, v, *zeroed, position, window=6)
    assert_close("window_attention", y, expected)


@pytest.mark.parametrize("cuts", [[1] * 20, [3, 1, 9, 7], [19, 1]], ids=str)
@pytest.mark.parametrize("window", [1, 5, 64])
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_one_pass(device: str, window: int, cuts: list[int]) -> None:
    q, k, v, past_k, past_v = _tensors((20, window, 0, 4, 2, 16), device=device)
    start = torch.zeros(1, dtype=torch.int64, device=device)
    with override("window_attention", "triton"):
        whole, whole_k, _ = window_attention(q, k, v, past_k, past_v, start, window=window)
        outputs = []
        parts = [torch.split(each, cuts, dim=1) for each in (q, k, v)]
        for new_q, new_k, new_v in zip(*parts, strict=True):
            y, past_k, past_v = window_attention(
                new_q, new_k, new_v, past_k, past_v, start, window=window
            )
            outputs.append(y)
            start = start + new_q.shape[1]
    assert_close("window_attention", torch.cat(outputs, dim=1), whole)
    assert torch.equal(past_k, whole_k)
