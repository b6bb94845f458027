"""SiLU gate for the exporter: plain operations in the graph's dtype, without wider copies."""

from __future__ import annotations

import torch
from torch.nn.functional import silu


def swiglu(gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """See `longspan.kernels.swiglu.swiglu`."""
    return silu(gate.to(x.dtype)) * x
