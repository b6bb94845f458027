"""SiLU gate for the exporter: plain operations in the graph's dtype, without wider copies."""

from __future__ import annotations

import torch
from torch.nn.functional import silu


def swiglu(gate: torch.Tensor, x: torch.Tensor, *, overwrite: bool = False) -> torch.Tensor:
    """See `longspan.kernels.swiglu.swiglu`; it overwrites nothing."""
    del overwrite
    return silu(gate.to(x.dtype)) * x
