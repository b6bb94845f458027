"""Gated linear attention (arXiv 2312.06635, equation 3) and retention, from a state to a state."""

from __future__ import annotations

import torch

from longspan.kernels.checks import require_dtype, require_shape
from longspan.kernels.choice import implementation

__all__ = ["gla"]


def gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    scale: float | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the recurrence over L tokens, in each of H heads with a matrix S of its own.

        S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T,   y_t = scale q_t^T S_t

    Log decays [B, L, H, K] make it gated linear attention: a decay for each token and key channel.
    Log decays [H] make it retention (arXiv 2307.08621, equation 6): a head forgets at one rate.

    Args:
        q: float [B, L, H, K], L >= 1.
        k: dtype of `q` [B, L, H, K].
        v: dtype of `q` [B, L, H, V].
        log_decay: float32 [B, L, H, K] or [H], zero or less.
        scale: of the output; None for K^-0.5.
        state: float32 [B, H, K, V], S before the first token; None for zeros.

    Returns:
        y, float32 [B, L, H, V], since a norm that rounds it follows, and S after the last token,
        float32 [B, H, K, V].

    Raises:
        ValueError: a shape or a dtype does not fit.
    """
    op = "gla"
    batch, length, heads, keys = q.shape
    values = v.shape[-1]
    require_dtype(op, "k", k, q.dtype)
    require_dtype(op, "v", v, q.dtype)
    require_dtype(op, "log_decay", log_decay, torch.float32)
    for name, tensor, shape in (
        ("k", k, (batch, length, heads, keys)),
        ("v", v, (batch, length, heads, values)),
        (
            "log_decay",
            log_decay,
            (heads,) if log_decay.dim() == 1 else (batch, length, heads, keys),
        ),
        ("state", state, (batch, heads, keys, values)),
    ):
        if tensor is not None:
            require_shape(op, name, tensor, shape)
    if state is None:
        state = log_decay.new_zeros(batch, heads, keys, values)
    require_dtype(op, "state", state, torch.float32)
    result: tuple[torch.Tensor, torch.Tensor] = implementation(op, q)(
        q, k, v, log_decay, scale=keys**-0.5 if scale is None else scale, state=state
    )
    return result
