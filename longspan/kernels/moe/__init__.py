"""A mixture of SwiGLU experts, each token going to a few of them (Jamba, arXiv 2403.19887)."""

from __future__ import annotations

import torch

from longspan.kernels.checks import require_dtype, require_shape
from longspan.kernels.choice import implementation

__all__ = ["moe"]


def moe(
    x: torch.Tensor,
    logits: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    *,
    top_k: int,
    renormalise: bool = False,
) -> torch.Tensor:
    """Send each token to the `top_k` experts of largest probability, and add what they give.

    With p = softmax(logits) over all E experts, in float32, and S the `top_k` largest, of equals
    the experts with the lower numbers:

        y = sum_{i in S} p_i W_down,i (silu(W_gate,i x) * (W_up,i x))

    Args:
        x: float [B, L, D].
        logits: float32 [B, L, E], the router's.
        gate_up: float [E, 2 F, D], gate rows first; cast to the dtype of `x` if it is another.
        down: float [E, D, F]; cast as `gate_up`.
        top_k: experts a token goes to, 1 to E.
        renormalise: whether the chosen probabilities are divided by their sum.

    Returns:
        y, dtype of `x` [B, L, D]; the sum over experts is taken in float32.

    Raises:
        ValueError: a shape, a dtype or `top_k` does not fit.
    """
    op = "moe"
    batch, length, width = x.shape
    experts, rows = gate_up.shape[:2]
    require_shape(op, "logits", logits, (batch, length, experts))
    require_shape(op, "gate_up", gate_up, (experts, rows // 2 * 2, width))
    require_shape(op, "down", down, (experts, width, rows // 2))
    require_dtype(op, "logits", logits, torch.float32)
    if not 1 <= top_k <= experts:
        raise ValueError(f"moe: top_k is {top_k}; it must be from 1 to the {experts} experts")
    y: torch.Tensor = implementation(op, x)(
        x.reshape(-1, width),
        logits.reshape(-1, experts),
        gate_up,
        down,
        top_k=top_k,
        renormalise=renormalise,
    )
    return y.reshape(x.shape)
