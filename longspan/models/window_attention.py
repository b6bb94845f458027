"""Sliding-window attention with RoPE and grouped key heads (Samba, arXiv 2406.07522, 2.1)."""

from __future__ import annotations

import torch

from longspan.kernels.attention import window_attention
from longspan.models.attention import Attention
from longspan.models.config import WindowAttentionConfig


class WindowAttention(Attention):
    """Attention over the last W tokens, whose keys and values the state keeps in order."""

    def __init__(self, config: WindowAttentionConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__(config, d_model, dtype=dtype)
        self.window = config.window

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D] from state {k, v [B, W-1, G, P], position int64 [1]}.

        Keys and values in int8 have k_scale and v_scale [B, W-1, G] beside them.
        """
        position = state["position"]
        q, k, v = self.project(x, position, state["k"].dtype)
        y, *past = window_attention(q, k, v, *self.past(state), position, window=self.window)
        return self.merge(y), {**self.after(*past), "position": position + x.shape[1]}
