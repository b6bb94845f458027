"""What every attention mixer shares: projections, heads, RoPE at absolute positions."""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.attention.int8_rows import Int8Rows, Rows, values_of
from longspan.kernels.rope import rope
from longspan.models.config import HeadsConfig
from longspan.models.linear import Linear

State = dict[str, torch.Tensor]


class Attention(nn.Module):
    """One product for queries, keys and values (rows in this order), and one for the output."""

    def __init__(self, config: HeadsConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        inner = config.n_heads * config.head_dim
        self.qkv_proj = Linear(d_model, config.qkv_rows, bias=config.qkv_bias, dtype=dtype)
        self.out_proj = Linear(inner, d_model, bias=config.out_bias, dtype=dtype)

    def project(
        self, x: torch.Tensor, position: torch.Tensor, kept: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of x, after RoPE.

        Args:
            x: float [B, L, D].
            position: int64 [1], tokens read before x.
            kept: the dtype that the state keeps keys and values in.

        Returns:
            dtype of `x` [B, L, H, P], [B, L, G, P] and [B, L, G, P].
        """
        return self.heads(self.qkv_proj(x), position, kept)

    def heads(
        self, qkv: torch.Tensor, position: torch.Tensor, kept: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cut what was projected into queries, keys and values, and rotate them.

        Keys are kept so, at absolute positions: what is kept needs no second rotation.

        Args:
            qkv: float [B, L, (H + 2 G) P].
            position: int64 [1], tokens read before.
            kept: the dtype that the state keeps keys and values in; they are rounded to it before
                their first use, so that a cut changes nothing where it is narrower than qkv. To
                int8 the op that attends rounds them.

        Returns:
            dtype of `qkv` [B, L, H, P], [B, L, G, P] and [B, L, G, P].
        """
        config = self.config
        heads, groups = config.n_heads, config.n_kv_heads
        batch, length, _ = qkv.shape
        parts = qkv.view(batch, length, heads + 2 * groups, config.head_dim)
        q, k, v = torch.split(parts, [heads, groups, groups], dim=2)
        if config.rope_base is not None:
            q, k = rope(
                q, k, position, base=config.rope_base,
                dims=config.rope_dims, interleaved=config.rope_interleaved,
            )  # fmt: skip
        if not kept.is_floating_point:
            return q, k, v
        return q, k.to(kept).to(k.dtype), v.to(kept).to(v.dtype)

    @staticmethod
    def past(state: State) -> tuple[Rows, Rows]:
        """The state's keys and values, as the op takes them."""
        k, v = state["k"], state["v"]
        if k.dtype != torch.int8:
            return k, v
        return Int8Rows(k, state["k_scale"]), Int8Rows(v, state["v_scale"])

    @staticmethod
    def after(past_k: Rows, past_v: Rows) -> State:
        """The part of the next state that holds keys and values, as the op gave them."""
        if isinstance(past_k, Int8Rows) and isinstance(past_v, Int8Rows):
            (k, k_scale), (v, v_scale) = past_k, past_v
            return {"k": k, "k_scale": k_scale, "v": v, "v_scale": v_scale}
        return {"k": values_of(past_k), "v": values_of(past_v)}

    def merge(self, y: torch.Tensor) -> torch.Tensor:
        """The mixer's output [B, L, D] from that of the heads [B, L, H, P]."""
        output: torch.Tensor = self.out_proj(y.flatten(-2))
        return output
