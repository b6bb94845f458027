"""A mixture of SwiGLU experts (Jamba, arXiv 2403.19887, section 2)."""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.moe import moe
from longspan.models.config import MoeConfig
from longspan.models.linear import Linear


class Experts(nn.Module):
    """One matrix for each expert, (out, in), in one tensor."""

    def __init__(self, experts: int, d_in: int, d_out: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, d_out, d_in, dtype=dtype))


class Moe(nn.Module):
    """A router, and experts whose gate and up rows stand in one matrix, gate first."""

    def __init__(self, config: MoeConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        experts, d_ff = config.n_experts, config.d_ff
        self.router = Linear(d_model, experts, dtype=dtype, exact=True)
        self.gate_up_proj = Experts(experts, d_model, 2 * d_ff, dtype=dtype)
        self.down_proj = Experts(experts, d_ff, d_model, dtype=dtype)

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Map x [B, L, D] to [B, L, D]; the state is empty."""
        # In float32: rounded logits would send a token elsewhere where two experts are close.
        logits = self.router(x.to(torch.promote_types(x.dtype, torch.float32)))
        y = moe(
            x, logits, self.gate_up_proj.weight, self.down_proj.weight,
            top_k=self.config.top_k, renormalise=self.config.renormalise,
        )  # fmt: skip
        return y, state
