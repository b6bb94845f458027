"""Sliding-window attention with RoPE and grouped key heads (Samba, arXiv 2406.07522, 2.1)."""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.attention import window_attention
from longspan.models.config import WindowAttentionConfig
from longspan.models.linear import Linear
from longspan.models.rope import rotate


class WindowAttention(nn.Module):
    """One product for queries, keys and values (rows in this order), attention, one for the output.

    Keys are kept after RoPE at absolute positions, so a window needs no second rotation.
    """

    def __init__(self, config: WindowAttentionConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        rows = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        self.qkv_proj = Linear(d_model, rows, dtype=dtype)
        self.out_proj = Linear(config.n_heads * config.head_dim, d_model, dtype=dtype)

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D] from state {k, v [B, W-1, G, P], position int64 [1]}."""
        config = self.config
        batch, length, _ = x.shape
        heads, groups = config.n_heads, config.n_kv_heads
        qkv = self.qkv_proj(x).view(batch, length, heads + 2 * groups, config.head_dim)
        q, k, v = qkv.split([heads, groups, groups], dim=2)
        position = state["position"]
        if config.rope_base is not None:
            positions = position + torch.arange(length, device=x.device)
            q = rotate(q, positions, base=config.rope_base)
            k = rotate(k, positions, base=config.rope_base)
        # As the window will hold them, so that a cut changes nothing where it is narrower.
        k, v = k.to(state["k"].dtype).to(k.dtype), v.to(state["v"].dtype).to(v.dtype)
        y, past_k, past_v = window_attention(
            q, k, v, state["k"], state["v"], position, window=config.window
        )
        y = self.out_proj(y.reshape(batch, length, heads * config.head_dim))
        return y, {"k": past_k, "v": past_v, "position": position + length}
