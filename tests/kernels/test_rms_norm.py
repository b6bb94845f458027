"""RMSNorm: the reference against torch, the Triton kernel against the reference."""

from __future__ import annotations

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.rms_norm.reference import rms_norm as reference
from tests.kernels.devices import DEVICE_DTYPES, DEVICES
from tests.tolerances import assert_close


@pytest.mark.parametrize("weighted", [True, False])
def test_reference_is_torchs(weighted: bool) -> None:
    x = torch.randn(3, 5, 100, dtype=torch.float64)
    weight = torch.randn(100, dtype=torch.float64) if weighted else None
    y = reference(x, weight, eps=1e-5, dtype=torch.float64)
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
    assert_close("rms_norm", y, reference(x.double(), weight, eps=1e-5, dtype=torch.float64))


@pytest.mark.parametrize("device", DEVICES)
def test_dtype_of_the_result_is_chosen(device: str) -> None:
    x = torch.randn(2, 3, 70, device=device).half()
    with override("rms_norm", "triton"):
        y = rms_norm(x, None, eps=1e-5, dtype=torch.float32)
    assert y.dtype == torch.float32
    assert_close("rms_norm", y, reference(x.double(), None, eps=1e-5, dtype=torch.float64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("view", ["half of a split", "transposed"])
def test_views(device: str, view: str) -> None:
    base = torch.randn(2, 7, 140, device=device)
    x = base[..., 70:] if view == "half of a split" else base.transpose(1, 2)
    with override("rms_norm", "triton"):
        y = rms_norm(x, None, eps=1e-5)
    assert_close("rms_norm", y, reference(x.double(), None, eps=1e-5, dtype=torch.float64))


@pytest.mark.parametrize("device", DEVICES)
def test_too_wide(device: str) -> None:
    x = torch.zeros(1, 65_537, device=device)
    with override("rms_norm", "triton"), pytest.raises(ValueError, match="65536 at most"):
        rms_norm(x, None, eps=1e-5)
