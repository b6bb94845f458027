"""RMSNorm: the reference against torch, the Triton kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from longspan.kernels import override
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.rms_norm.reference import rms_norm as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, widen
from tests.tolerances import assert_close


def expected(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    *,
    gate_first: bool = False,
) -> torch.Tensor:
    """The reference in float64."""
    return reference(
        x.double(), widen(weight), eps=1e-5, gate=widen(gate), gate_first=gate_first,
        dtype=torch.float64,
    )  # fmt: skip


@pytest.mark.parametrize("weighted", [True, False])
def test_reference_is_torchs(weighted: bool) -> None:
    x = torch.randn(3, 5, 100, dtype=torch.float64)
    weight = torch.randn(100, dtype=torch.float64) if weighted else None
    y = expected(x, weight)
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x, (100,), weight, 1e-5))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 24), (65, 100), (1, 3, 4097)], ids=str)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(device: str, dtype: torch.dtype, shape: tuple[int, ...], weighted: bool) -> None:
    x = torch.randn(shape, device=device).to(dtype)
    weight = torch.randn(shape[-1], device=device) if weighted else None
    with override("rms_norm", "triton"):
        y = rms_norm(x, weight, eps=1e-5)
    assert y.dtype == dtype
    assert_close("rms_norm", y, expected(x, weight))


@pytest.mark.parametrize("gate_first", [True, False])
def test_the_reference_gates_before_or_after(gate_first: bool) -> None:
    x, gate = torch.randn(2, 3, 5, 2, 50, dtype=torch.float64)
    weight = torch.randn(2, 50, dtype=torch.float64)
    before, after = (silu(gate), 1) if gate_first else (1, silu(gate))
    y = torch.nn.functional.rms_norm(x * before, (50,), None, 1e-5) * weight * after
    torch.testing.assert_close(expected(x, weight, gate, gate_first=gate_first), y)


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("rows", ["no weight", "one weight", "a weight a group"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 2, 1), (2, 31, 3, 24), (5, 2, 70), (1, 3, 2, 2700)], ids=str
)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_gated_groups(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], rows: str, gate_first: bool
) -> None:
    """The gate is a part of wider rows, as of a projection to several tensors."""
    groups, width = shape[-2:]
    x = torch.randn(shape, device=device).to(dtype)
    both = torch.randn(*shape[:-2], 2 * groups * width, device=device).to(dtype)
    gate = both[..., groups * width :].unflatten(-1, (groups, width))
    each = {"no weight": None, "one weight": (width,), "a weight a group": (groups, width)}[rows]
    weight = None if each is None else torch.randn(each, device=device)
    with override("rms_norm", "triton"):
        y = rms_norm(x, weight, eps=1e-5, gate=gate, gate_first=gate_first)
    assert y.shape == x.shape
    assert_close("rms_norm", y, expected(x, weight, gate, gate_first=gate_first))


@pytest.mark.parametrize("device", DEVICES)
def test_a_gate_a_row(device: str) -> None:
    x, gate = torch.randn(2, 2, 7, 40, device=device)
    weight = torch.randn(40, device=device)
    with override("rms_norm", "triton"):
        y = rms_norm(x, weight, eps=1e-5, gate=gate, gate_first=True)
    assert_close("rms_norm", y, expected(x, weight, gate, gate_first=True))


@pytest.mark.parametrize("device", DEVICES)
def test_dtype_of_the_result_is_chosen(device: str) -> None:
    x = torch.randn(2, 3, 70, device=device).half()
    with override("rms_norm", "triton"):
        y = rms_norm(x, None, eps=1e-5, dtype=torch.float32)
    assert y.dtype == torch.float32
    assert_close("rms_norm", y, expected(x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("view", ["half of a split", "transposed"])
def test_views(device: str, view: str) -> None:
    base = torch.randn(2, 7, 140, device=device)
    x = base[..., 70:] if view == "half of a split" else base.transpose(1, 2)
    with override("rms_norm", "triton"):
        y = rms_norm(x, None, eps=1e-5)
    assert_close("rms_norm", y, expected(x))


@pytest.mark.parametrize("device", DEVICES)
def test_too_wide(device: str) -> None:
    x = torch.zeros(1, 65_537, device=device)
    with override("rms_norm", "triton"), pytest.raises(ValueError, match="65536 at most"):
        rms_norm(x, None, eps=1e-5)


@pytest.mark.parametrize(
    ("weight", "gate", "message"),
    [
        ((3,), (2, 4), r"weight has shape \[3\]; it must be \[4\]"),
        ((4, 4), (2, 4), r"weight has shape \[4, 4\]; it must be \[2, 4\]"),
        ((4,), (4,), r"gate has shape \[4\]; it must be \[2, 4\]"),
    ],
)
def test_what_does_not_fit(weight: tuple[int, ...], gate: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^rms_norm: {message}$"):
        rms_norm(torch.zeros(2, 4), torch.zeros(weight), eps=1e-5, gate=torch.zeros(gate))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [1, 40, 700, 5120])
def test_the_result_may_take_the_place_of_x(device: str, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(37, 2, width, generator=generator).to(device)
    gate, weight = torch.randn_like(x), torch.randn(width, device=device)
    with override("rms_norm", "triton"):
        expected = rms_norm(x, weight, eps=1e-5, gate=gate, gate_first=True)
        other = rms_norm(
            x, weight, eps=1e-5, gate=gate, gate_first=True, dtype=torch.float64, overwrite=True
        )
        assert other.data_ptr() != x.data_ptr()
        y = rms_norm(x, weight, eps=1e-5, gate=gate, gate_first=True, overwrite=True)
    assert y.data_ptr() == x.data_ptr()
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
