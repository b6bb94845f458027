"""Rotary position embedding at absolute positions (RoPE, arXiv 2104.09864)."""

from __future__ import annotations

import torch

from longspan.kernels.checks import require_dtype, require_shape
from longspan.kernels.choice import implementation

__all__ = ["rope"]


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float,
    dims: int | None = None,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate each head of queries and keys by the position of its token.

    Args:
        q: float [B, L, H, P].
        k: dtype of `q` [B, L, G, P].
        position: int64 [1], absolute, of the first token.
        base: of the frequencies base^(-2i/P), such as 10000.
        dims: even; only the first `dims` channels of a head are rotated, as if P were so small
            (partial RoPE). None for all P.
        interleaved: whether channels 2i and 2i + 1 are rotated together, not i and i + P/2.

    Returns:
        dtype of `q` [B, L, H, P] and [B, L, G, P].

    Raises:
        ValueError: a shape or a dtype does not fit.
    """
    op = "rope"
    batch, length, _, width = q.shape
    require_shape(op, "k", k, (batch, length, None, width))
    require_shape(op, "position", position, (1,))
    require_dtype(op, "k", k, q.dtype)
    require_dtype(op, "position", position, torch.int64)
    rotated = width if dims is None else dims
    if not 0 < rotated <= width or rotated % 2:
        raise ValueError(
            f"{op}: {rotated} channels of a head are to be rotated; of {width} it must be an even "
            "number"
        )
    result: tuple[torch.Tensor, torch.Tensor] = implementation(op, q)(
        q, k, position, base=base, dims=rotated, interleaved=interleaved
    )
    return result
