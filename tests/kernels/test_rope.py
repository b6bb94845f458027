"""RoPE: the reference against complex numbers, the Triton kernel against the reference."""

from __future__ import annotations

import cmath

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.rope import rope
from longspan.kernels.rope.reference import rope as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES
from tests.tolerances import assert_close

BASE = 10000.0


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    position: int,
    *,
    base: float = BASE,
    dims: int | None = None,
    interleaved: bool = False,
) -> None:
    at = torch.tensor([position], device=q.device)
    with override("rope", "triton"):
        found = rope(q, k, at, base=base, dims=dims, interleaved=interleaved)
    expected = reference(
        q.double(), k.double(), at, base=base, dims=dims or q.shape[-1], interleaved=interleaved
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == q.dtype
        assert ours.is_contiguous()
        assert_close("rope", ours, theirs)


@pytest.mark.parametrize("interleaved", [True, False])
def test_reference_turns_complex_numbers(interleaved: bool) -> None:
    q = torch.randn(1, 3, 1, 8, dtype=torch.float64)
    turned, _ = reference(q, q, torch.tensor([5]), base=BASE, dims=6, interleaved=interleaved)
    for t in range(3):
        for i in range(3):
            low, high = (2 * i, 2 * i + 1) if interleaved else (i, i + 3)
            head, found = q[0, t, 0], turned[0, t, 0]
            point = complex(head[low], head[high]) * cmath.exp(1j * (5 + t) * BASE ** (-i / 3))
            assert complex(found[low], found[high]) == pytest.approx(point, abs=1e-12)
    assert torch.equal(turned[..., 6:], q[..., 6:])


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("width", "dims"), [(2, None), (16, None), (20, 12), (80, 6)])
@pytest.mark.parametrize("length", [1, 2, 63, 300])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(
    device: str, dtype: torch.dtype, length: int, width: int, dims: int | None, interleaved: bool
) -> None:
    q = torch.randn(2, length, 3, width, device=device).to(dtype)
    k = torch.randn(2, length, 2, width, device=device).to(dtype)
    _check(q, k, 7, dims=dims, interleaved=interleaved)


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (8, 8), (7, 2), (9, 1), (16, 1)])
@pytest.mark.parametrize("device", DEVICES)
def test_heads(device: str, heads: int, groups: int) -> None:
    """Programs with queries alone, with keys alone, and with both."""
    q = torch.randn(1, 5, heads, 4, device=device)
    _check(q, torch.randn(1, 5, groups, 4, device=device), 3)


@pytest.mark.parametrize("position", [1_000_000, 2**31 + 3, 2**40])
@pytest.mark.parametrize("base", [BASE, 500_000.0, 0.5])
@pytest.mark.parametrize("device", DEVICES)
def test_far_positions(device: str, base: float, position: int) -> None:
    """float64 has 53 bits for the turns: 13 are left of the fraction at 2^40."""
    q = torch.randn(1, 4, 2, 32, device=device)
    if position < 2**40:
        _check(q, q, position, base=base)
    with override("rope", "triton"):
        turned, _ = rope(q, q, torch.tensor([position], device=device), base=base)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("view", ["parts of a projection", "transposed"])
def test_views(device: str, view: str) -> None:
    qkv = torch.randn(2, 7, 6, 10, device=device)
    if view == "transposed":
        qkv = qkv.transpose(1, 3).contiguous().transpose(1, 3)
    q, k, _ = qkv.split([3, 2, 1], dim=2)
    _check(q, k, 11)


@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_one_pass(device: str) -> None:
    q, k = torch.randn(2, 1, 40, 3, 10, device=device)
    with override("rope", "triton"):
        whole = rope(q, k, torch.tensor([5], device=device), base=BASE)
        for start, end in ((0, 1), (1, 24), (24, 40)):
            at = torch.tensor([5 + start], device=device)
            part = rope(q[:, start:end], k[:, start:end], at, base=BASE)
            for ours, theirs in zip(part, whole, strict=True):
                assert torch.equal(ours, theirs[:, start:end])


@pytest.mark.parametrize(
    ("k", "dims", "message"),
    [
        ((2, 3, 1, 6), None, r"k has shape \[2, 3, 1, 6\]; it must be \[2, 3, any, 8\]"),
        ((2, 3, 1, 8), 5, "5 channels of a head are to be rotated; of 8 it must be an even number"),
        ((2, 3, 1, 8), 10, "10 channels .* of 8 it must be an even number"),
    ],
)
def test_what_does_not_fit(k: tuple[int, ...], dims: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^rope: {message}$"):
        rope(torch.zeros(2, 3, 4, 8), torch.zeros(k), torch.zeros(1).long(), base=BASE, dims=dims)
