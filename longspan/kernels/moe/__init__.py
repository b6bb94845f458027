"""A mixture of SwiGLU experts, each token going to a few of them (Jamba, arXiv 2403.19887)."""

from __future__ import annotations

import torch

from longspan.kernels.checks import require_dtype, require_shape
from longspan.kernels.choice import implementation
from longspan.kernels.moe.grouped import Bring
from longspan.kernels.moe.grouped import moe_brought as _brought
from longspan.kernels.moe.matrices import Matrices, Packed, check_matrices, sizes_of

__all__ = ["Matrices", "Packed", "moe", "moe_brought"]


def moe(
    x: torch.Tensor,
    logits: torch.Tensor,
    gate_up: Matrices,
    down: Matrices,
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
        gate_up: float [E, 2 F, D], gate rows first; cast to the dtype of `x` if it is another. Or
            the same in 8 or 4 bits.
        down: float [E, D, F], cast as `gate_up`; or in 8 or 4 bits.
        top_k: experts a token goes to, 1 to E.
        renormalise: whether the chosen probabilities are divided by their sum.

    Returns:
        y, dtype of `x` [B, L, D]; the sum over experts is taken in float32.

    Raises:
        ValueError: a shape, a dtype or `top_k` does not fit.
    """
    op = "moe"
    batch, length, width = x.shape
    experts, rows = sizes_of(gate_up)
    require_shape(op, "logits", logits, (batch, length, experts))
    check_matrices(op, "gate_up", gate_up, (experts, rows // 2 * 2, width))
    check_matrices(op, "down", down, (experts, width, rows // 2))
    require_dtype(op, "logits", logits, torch.float32)
    _check_top_k(top_k, experts)
    y: torch.Tensor = implementation(op, x)(
        x.reshape(-1, width),
        logits.reshape(-1, experts),
        gate_up,
        down,
        top_k=top_k,
        renormalise=renormalise,
    )
    return y.reshape(x.shape)


def moe_brought(
    x: torch.Tensor,
    logits: torch.Tensor,
    bring: Bring,
    *,
    top_k: int,
    renormalise: bool = False,
) -> torch.Tensor:
    """Compute `moe` with experts that are brought one at a time, and only if a token goes to them.

    Args:
        x: float [B, L, D].
        logits: float32 [B, L, E], the router's.
        bring: takes how many tokens each chosen expert has, by its number, and gives the number,
            gate_up [2 F, D] and down [D, F] of each, as `moe` takes them, in the same order, on
            the device of `x`; each is used before the next one is asked for.
        top_k: experts a token goes to, 1 to E.
        renormalise: whether the chosen probabilities are divided by their sum.

    Returns:
        y as `moe` gives it, on every device by plain torch; the host waits for the router.

    Raises:
        ValueError: a shape, a dtype or `top_k` does not fit.
    """
    require_shape("moe", "logits", logits, (*x.shape[:2], None))
    require_dtype("moe", "logits", logits, torch.float32)
    _check_top_k(top_k, logits.shape[-1])
    flat = (x.reshape(-1, x.shape[-1]), logits.reshape(-1, logits.shape[-1]))
    return _brought(*flat, bring, top_k=top_k, renormalise=renormalise).reshape(x.shape)


def _check_top_k(top_k: int, experts: int) -> None:
    if not 1 <= top_k <= experts:
        raise ValueError(f"moe: top_k is {top_k}; it must be from 1 to the {experts} experts")
