"""Attention over every token before, with RoPE and grouped key heads (arXiv 2305.13245).

In mamba_ssm's hybrids (arXiv 2405.21060, section 7.3) a causal convolution reads queries, keys and
values before they are rotated.
"""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.full_attention import full_attention
from longspan.models.attention import Attention
from longspan.models.config import FullAttentionConfig


class FullAttention(Attention):
    """Attention over all tokens, whose keys and values the state keeps in caches."""

    def __init__(self, config: FullAttentionConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__(config, d_model, dtype=dtype)
        rows, taps = config.qkv_rows, config.d_conv
        self.conv_weight: nn.Parameter | None = None
        self.conv_bias: nn.Parameter | None = None
        if taps is not None:
            self.conv_weight = nn.Parameter(torch.empty(rows, 1, taps, dtype=dtype))
            self.conv_bias = nn.Parameter(torch.empty(rows, dtype=dtype))

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D] from state {k, v [B, C, G, P], position int64 [1]}.

        With a convolution the state has conv [B, K-1, (H + 2 G) P], too; keys and values in int8
        have k_scale and v_scale [B, C, G] beside them. The caches must have room:
        position + L <= C.
        """
        position, qkv, after = state["position"], self.qkv_proj(x), {}
        if self.conv_weight is not None:
            # As the tail will hold it, so that a cut changes nothing where the tail is narrower.
            qkv = qkv.to(state["conv"].dtype).to(qkv.dtype)
            qkv, after["conv"] = causal_conv(qkv, self.conv_weight, self.conv_bias, state["conv"])
        q, k, v = self.heads(qkv, position, state["k"].dtype)
        y, *past = full_attention(q, k, v, *self.past(state), position)
        after |= {**self.after(*past), "position": position + x.shape[1]}
        return self.merge(y), after
