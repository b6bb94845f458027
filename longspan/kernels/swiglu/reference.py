"""SiLU gate, plain torch: y = g / (1 + exp(-g)) * x (arXiv 2002.05202, equation 6)."""

from __future__ import annotations

import torch
from torch.nn.functional import silu


def swiglu(gate: torch.Tensor, x: torch.Tensor, *, overwrite: bool = False) -> torch.Tensor:
    """See `longspan.kernels.swiglu.swiglu`; it overwrites nothing."""
    del overwrite
    wide = torch.promote_types(x.dtype, torch.float32)
    # In this order x is widened without a copy of its own.
    return (silu(gate.to(wide)) * x).to(x.dtype)
