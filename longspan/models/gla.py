"""Gated linear attention (arXiv 2312.06635, section 4.4) and retention (arXiv 2307.08621)."""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.gla import gla
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.rope import rope
from longspan.models.config import GlaConfig
from longspan.models.linear import Linear
from longspan.models.softplus import softplus_


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
        y, gate, kept, new_state = self._recurrence(x, state)
        eps, dtype = self.config.norm_eps, x.dtype
        y = rms_norm(y, self.norm_weight, eps=eps, gate=gate, dtype=dtype, overwrite=True)
        # The output takes the place of what in_proj gave.
        del gate, kept
        return self.out_proj(y.flatten(-2)), new_state

    def _recurrence(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Its output and the gate [B, L, H, V], what to keep until the norm is made, the state."""
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
        # What was made for the recurrence alone gives its room to the norm, if that fits there. A
        # hole below the norm would be of no use.
        rotated = 0 if config.rope_base is None else 2 * keys * x.element_size()
        decays = keys * log_decay.element_size() if low else 0
        fits = rotated + decays >= values * x.element_size()
        return y, gate.view(y.shape), () if fits else (q, k, log_decay), new_state

    def _log_decay(self, low: torch.Tensor) -> torch.Tensor:
        """log(sigmoid(gate)) / divisor, float32 [B, L, H, K]."""
        assert self.decay_proj is not None, "fixed decays have no gate"
        config = self.config
        wide = torch.promote_types(low.dtype, torch.float32)
        shape = (*low.shape[:-1], config.n_heads, config.key_dim)
        # Made before the logits, which leave no hole below it when they are gone.
        decay = torch.empty(shape, dtype=wide, device=low.device)
        decay.copy_(self.decay_proj(low).view(shape))
        return softplus_(decay.neg_()).div_(-config.gate_divisor)


def _fixed_log_decay(q: torch.Tensor) -> torch.Tensor:
    """Log of retention's decays 1 - 2^(-5-h), float32 [H] (arXiv 2307.08621, equation 8)."""
    heads = torch.arange(q.shape[2], dtype=torch.float64, device=q.device)
    return torch.log1p(-torch.exp2(-5 - heads)).to(torch.promote_types(q.dtype, torch.float32))
