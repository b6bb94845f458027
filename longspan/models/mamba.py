"""The Mamba-1 mixer (arXiv 2312.00752, section 3.4 and algorithm 2)."""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.selective_scan import selective_scan
from longspan.models.config import MambaConfig
from longspan.models.linear import Linear
from longspan.models.project import project


class Mamba(nn.Module):
    """in_proj, causal convolution with SiLU, selective scan with gate, out_proj.

    `A` is stored as -exp(A_log); `A`, `D` and `dt_bias` are float32 in every checkpoint.
    """

    def __init__(self, config: MambaConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        inner, states, rank = config.d_inner, config.d_state, config.dt_rank
        self.in_proj = Linear(d_model, 2 * inner, bias=config.proj_bias, dtype=dtype)
        self.conv_weight = nn.Parameter(torch.empty(inner, 1, config.d_conv, dtype=dtype))
        self.conv_bias = nn.Parameter(torch.empty(inner, dtype=dtype)) if config.conv_bias else None
        self.x_proj = Linear(inner, rank + 2 * states, dtype=dtype)
        self.dt_proj = Linear(rank, inner, dtype=dtype)
        self.dt_bias = nn.Parameter(torch.empty(inner, dtype=torch.float32))
        self.A = nn.Parameter(torch.empty(inner, states, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(inner, dtype=torch.float32))
        self.out_proj = Linear(inner, d_model, bias=config.proj_bias, dtype=dtype)

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D] from state {conv [B, K-1, E], ssm float32 [B, E, N]}."""
        config = self.config
        _, u, z, conv = project(
            x, self.in_proj, self.conv_weight, self.conv_bias, state["conv"], first=0
        )
        dt, B, C = self.x_proj(u).split([config.dt_rank, config.d_state, config.d_state], dim=-1)
        if config.bcdt_norm_eps is not None:
            eps = config.bcdt_norm_eps
            dt, B, C = rms_norm(dt, eps=eps), rms_norm(B, eps=eps), rms_norm(C, eps=eps)
        y, ssm = selective_scan(
            u, self.dt_proj(dt), self.A, B, C,
            D=self.D, z=z, dt_bias=self.dt_bias, state=state["ssm"],
        )  # fmt: skip
        return self.out_proj(y), {"conv": conv, "ssm": ssm}
