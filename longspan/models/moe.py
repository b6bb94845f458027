"""A mixture of SwiGLU experts (Jamba, arXiv 2403.19887, section 2)."""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.moe import moe, moe_brought
from longspan.kernels.moe.grouped import Bring
from longspan.models.config import MoeConfig
from longspan.models.linear import Linear


class Experts(nn.Module):
    """One matrix for each expert, (out, in), in one tensor."""

    def __init__(self, experts: int, d_in: int, d_out: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, d_out, d_in, dtype=dtype))


class Moe(nn.Module):
    """A router, and experts whose gate and up rows stand in one matrix, gate first.

    Attributes:
        bring: brings experts that do not lie on the device, as `longspan.kernels.moe.moe_brought`
            takes it; None where they do.
    """

    def __init__(self, config: MoeConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        experts, d_ff = config.n_experts, config.d_ff
        self.bring: Bring | None = None
        self.router = Linear(d_model, experts, dtype=dtype, exact=True)
        self.gate_up_proj = Experts(experts, d_model, 2 * d_ff, dtype=dtype)
        self.down_proj = Experts(experts, d_ff, d_model, dtype=dtype)

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Map x [B, L, D] to [B, L, D]; the state is empty."""
        # In float32: rounded logits would send a token elsewhere where two experts are close.
        logits = self.router(x.to(torch.promote_types(x.dtype, torch.float32)))
        top_k, renormalise = self.config.top_k, self.config.renormalise
        if self.bring is not None:
            y = moe_brought(x, logits, self.bring, top_k=top_k, renormalise=renormalise)
            return y, state
        y = moe(
            x, logits, self.gate_up_proj.weight, self.down_proj.weight,
            top_k=top_k, renormalise=renormalise,
        )  # fmt: skip
        return y, state
