"""RMSNorm for the exporter: the reference's plain operations, which any ONNX runtime has.

The exporter makes `RMSNormalization` of them, whose scale is one row. So a weight with a row for
each group multiplies the rows of all groups together, where the exporter sees no norm.
"""

from __future__ import annotations

import torch
from torch.nn.functional import silu

from longspan.kernels.rms_norm import reference


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    gate: torch.Tensor | None,
    gate_first: bool,
    dtype: torch.dtype,
    overwrite: bool = False,
) -> torch.Tensor:
    """See `longspan.kernels.rms_norm.rms_norm`."""
    if weight is None or weight.dim() == 1:
        return reference.rms_norm(x, weight, eps=eps, gate=gate, gate_first=gate_first, dtype=dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    first = gate if gate_first else None
    normed = reference.rms_norm(x, None, eps=eps, gate=first, gate_first=True, dtype=wide)
    y = (normed.flatten(-2) * weight.flatten().to(wide)).view(x.shape)
    if gate is not None and not gate_first:
        y = y * silu(gate.to(wide))
    return y.to(dtype)
