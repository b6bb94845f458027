"""Where a kernel's tests run: the interpreter on the CPU, or CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch

# Triton runs either interpreted or compiled in one process, never both.
_interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with CUDA, Triton is not interpreted"
)

DEVICES = [
    pytest.param("cpu", id="interpreter", marks=_interpreted),
    pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
]
# The interpreter multiplies the bits of bfloat16 matrices as if they were integers, and truncates
# where CUDA rounds to nearest: bfloat16 is tested on CUDA alone.
DEVICE_DTYPES = [
    pytest.param("cpu", torch.float32, id="interpreter-float32", marks=_interpreted),
    pytest.param("cpu", torch.float16, id="interpreter-float16", marks=_interpreted),
    pytest.param("cuda", torch.float32, id="cuda-float32", marks=pytest.mark.gpu),
    pytest.param("cuda", torch.float16, id="cuda-float16", marks=pytest.mark.gpu),
    pytest.param("cuda", torch.bfloat16, id="cuda-bfloat16", marks=pytest.mark.gpu),
]


def widen(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor in float64, for the reference; None stays None."""
    return None if tensor is None else tensor.double()


def wide(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments with everything of floating point in float64."""
    return {
        name: widen(each) if torch.is_tensor(each) and each.is_floating_point() else each
        for name, each in given.items()
    }
