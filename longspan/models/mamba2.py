"""The Mamba-2 mixer (arXiv 2405.21060, section 7.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from longspan.kernels.ssd import ssd
from longspan.kernels.ssd_norm_linear import ssd_norm_linear
from longspan.kernels.ssd_norm_linear.reference import gated_norm
from longspan.kernels.swiglu import swiglu
from longspan.models.config import Mamba2Config
from longspan.models.linear import Linear
from longspan.models.residual import Residual, project


class GatedNorm(nn.Module):
    """RMSNorm of y silu(z), with one mean square for each group of E / G channels."""

    def __init__(self, width: int, *, groups: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Gate and normalise y [B, L, E] by z [B, L, E]."""
        return gated_norm(y, z, self.weight, self.groups, self.eps)


class Mamba2(nn.Module):
    """in_proj, causal convolution with SiLU, state space duality, gated norm, out_proj.

    in_proj has the rows [z, x, B, C, dt]. `A` is stored as -exp(A_log); `A`, `D` and `dt_bias` are
    float32 in every bundle.
    """

    reads_residual = True

    def __init__(self, config: Mamba2Config, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        heads, inner, channels = config.n_heads, config.d_inner, config.conv_channels
        skip = (heads, config.head_dim) if config.d_per_channel else (heads,)
        bias = config.proj_bias
        self.in_proj = Linear(d_model, inner + channels + heads, bias=bias, dtype=dtype)
        self.conv_weight = nn.Parameter(torch.empty(channels, 1, config.d_conv, dtype=dtype))
        self.conv_bias = (
            nn.Parameter(torch.empty(channels, dtype=dtype)) if config.conv_bias else None
        )
        self.dt_bias = nn.Parameter(torch.empty(heads, dtype=torch.float32))
        self.A = nn.Parameter(torch.empty(heads, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(skip, dtype=torch.float32))
        self.norm = (
            None
            if config.norm_eps is None
            else GatedNorm(inner, groups=config.n_groups, eps=config.norm_eps, dtype=dtype)
        )
        self.out_proj = Linear(inner, d_model, bias=bias, dtype=dtype)

    def forward(
        self, x: torch.Tensor | Residual, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D] from state {conv [B, K-1, E + 2 G N], ssm float32 [B, H, N, P]}."""
        config = self.config
        groups, states, inner = config.n_groups, config.d_state, config.d_inner
        z, u, dt, conv = project(
            x, self.in_proj, self.conv_weight, self.conv_bias, state["conv"], first=inner
        )
        u, B, C = torch.split(u, [inner, groups * states, groups * states], dim=-1)
        rows = u.shape[:-1]
        inputs = (
            u.view(*rows, config.n_heads, config.head_dim), dt, self.A,
            B.view(*rows, groups, states), C.view(*rows, groups, states),
        )  # fmt: skip
        options: dict[str, Any] = {
            "D": self.D, "dt_bias": self.dt_bias,
            "dt_limit": config.dt_limit, "state": state["ssm"],
        }  # fmt: skip
        norm, out_proj = self.norm, self.out_proj
        if norm is None or not out_proj.weight.is_floating_point():
            y, ssm = ssd(*inputs, **options)
            y = y.flatten(-2)
            out = out_proj(swiglu(z, y) if norm is None else norm(y, z))
        else:
            out, ssm = ssd_norm_linear(
                *inputs, z, norm.weight, out_proj.weight, out_proj.bias, eps=norm.eps, **options
            )
        return out, {"conv": conv, "ssm": ssm}
