"""Gated linear attention (arXiv 2312.06635, section 4.4) and retention (arXiv 2307.08621)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import softplus

from longspan.kernels.gla import gla
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.rope import rope
from longspan.models.config import GlaConfig
from longspan.models.linear import Linear


class GatedLinearAttention(nn.Module):
    """in_proj, the recurrence, RMSNorm of each head, SiLU gate, out_proj.

    in_proj has the rows [q, k, v, gate] and, where decays depend on the token, the low-rank rows
    that decay_proj widens to a decay for each key channel. Keys pass into the state rotated by
    their absolute positions, so a state needs no second rotation.
    """

    def __init__(self, config: GlaConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        keys, values = config.n_heads * config.key_dim, config.n_heads * config.value_dim
        rank = config.gate_rank or 0
        self.in_proj = Linear(d_model, 2 * keys + 2 * values + rank, dtype=dtype)
        self.decay_proj = Linear(rank, keys, bias=True, dtype=dtype) if rank else None
        self.norm_weight = nn.Parameter(torch.empty(config.value_dim, dtype=dtype))
        self.out_proj = Linear(values, d_model, dtype=dtype)

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D] from state {recurrent float32 [B, H, K, V], position int64 [1]}."""
        config = self.config
        batch, length, _ = x.shape
        keys, values = config.n_heads * config.key_dim, config.n_heads * config.value_dim
        rank = [] if config.gate_rank is None else [config.gate_rank]
        q, k, v, gate, *low = self.in_proj(x).split([keys, keys, values, values, *rank], dim=-1)
        q = q.view(batch, length, config.n_heads, config.key_dim)
        k = k.view(batch, length, config.n_heads, config.key_dim)
        v = v.view(batch, length, config.n_heads, config.value_dim)
        new_state = {}
        if config.rope_base is not None:
            position = state["position"]
            q, k = rope(q, k, position, base=config.rope_base)
            new_state["position"] = position + length
        log_decay = self._log_decay(*low) if low else _fixed_log_decay(q)
        y, new_state["recurrent"] = gla(q, k, v, log_decay, state=state["recurrent"])
        # Rotated ones are copies; the norm needs their room.
        del q, k
        gate = gate.view(y.shape)
        y = rms_norm(y, self.norm_weight, eps=config.norm_eps, gate=gate, dtype=x.dtype)
        return self.out_proj(y.flatten(-2)), new_state

    def _log_decay(self, low: torch.Tensor) -> torch.Tensor:
        """log(sigmoid(gate)) / divisor, float32 [B, L, H, K]."""
        assert self.decay_proj is not None, "fixed decays have no gate"
        config = self.config
        logits = self.decay_proj(low)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_decay: torch.Tensor = softplus(-logits) / -config.gate_divisor
        return log_decay.view(*log_decay.shape[:-1], config.n_heads, config.key_dim)


def _fixed_log_decay(q: torch.Tensor) -> torch.Tensor:
    """Log of retention's decays 1 - 2^(-5-h), float32 [H] (arXiv 2307.08621, equation 8)."""
    heads = torch.arange(q.shape[2], dtype=torch.float64, device=q.device)
    return torch.log1p(-torch.exp2(-5 - heads)).to(torch.promote_types(q.dtype, torch.float32))
