"""Launches that begin while the one before them still runs, in kernels and at their call.

    start_next_launch(OVERLAP)       # first in a kernel: what follows it may take free room
    wait_for_last_launch(OVERLAP)    # before it reads what another kernel wrote, or writes
    kernel[grid](..., **overlap_options(x))

Every program waits, so a launch ends only after all those before it have.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from longspan.kernels.overlap import launches_may_overlap


@triton.jit
def start_next_launch(OVERLAP: tl.constexpr):
    """Let the next launch begin once all programs of this one have."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_last_launch(OVERLAP: tl.constexpr):
    """Wait until the launch before has ended, and all that it wrote can be read."""
    if OVERLAP:
        gdc_wait()


def overlap_options(x: torch.Tensor, *early: torch.Tensor | None) -> dict[str, bool]:
    """Arguments of a launch over `x`: to overlap where that was allowed and the GPU can.

    Args:
        x: an input.
        early: what is read before the launch before has ended, as it was given; a copy, such as is
            made of what is not contiguous, would be the launch before.
    """
    allowed = x.is_cuda and launches_may_overlap() and _can_overlap(x.device)
    if allowed and all(each is None or each.is_contiguous() for each in early):
        return {"OVERLAP": True, "launch_pdl": True}
    return {"OVERLAP": False}


@cache
def _can_overlap(device: torch.device) -> bool:
    """Whether the GPU has programmatic dependent launches: compute capability 9.0 and above."""
    return torch.cuda.get_device_capability(device) >= (9, 0)
