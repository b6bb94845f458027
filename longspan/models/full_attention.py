"""Attention over every token before, with RoPE and grouped key heads (arXiv 2305.13245)."""

from __future__ import annotations

import torch

from longspan.kernels.full_attention import full_attention
from longspan.models.attention import Attention


class FullAttention(Attention):
    """Attention over all tokens, whose keys and values the state keeps in caches."""

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D] from state {k, v [B, C, G, P], position int64 [1]}.

        The caches must have room: position + L <= C.
        """
        position = state["position"]
        q, k, v = self.project(x, position, state["k"].dtype)
        y, past_k, past_v = full_attention(q, k, v, state["k"], state["v"], position)
        return self.merge(y), {"k": past_k, "v": past_v, "position": position + x.shape[1]}
