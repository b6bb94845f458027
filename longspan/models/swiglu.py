"""SwiGLU MLP: W_down(silu(W_gate x) * W_up x) (arXiv 2002.05202)."""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.swiglu import swiglu
from longspan.models.config import MlpConfig
from longspan.models.linear import Linear


class SwiGlu(nn.Module):
    """Gate and up rows stand in one matrix, gate first."""

    def __init__(self, config: MlpConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up_proj = Linear(d_model, 2 * config.d_ff, bias=config.bias, dtype=dtype)
        self.down_proj = Linear(config.d_ff, d_model, bias=config.bias, dtype=dtype)

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Map x [B, L, D] to [B, L, D]; the state is empty."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        hidden = swiglu(gate, up)
        del gate, up
        return self.down_proj(hidden), state
