"""The Mamba-2 mixer (arXiv 2405.21060, section 7.1)."""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.ssd import ssd
from longspan.kernels.swiglu import swiglu
from longspan.models.config import Mamba2Config
from longspan.models.linear import Linear


class GatedNorm(nn.Module):
    """RMSNorm of y silu(z), with one mean square for each group of E / G channels.

    It computes in float32: the product of two activations has twice their digits.
    """

    def __init__(self, width: int, *, groups: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Gate and normalise y [B, L, E] by z [B, L, E]."""
        if self.groups == 1:
            return rms_norm(y, self.weight, eps=self.eps, gate=z, gate_first=True)
        by_group = (*y.shape[:-1], self.groups, y.shape[-1] // self.groups)
        return rms_norm(
            y.view(by_group), self.weight.view(by_group[-2:]),
            eps=self.eps, gate=z.view(by_group), gate_first=True,
        ).flatten(-2)  # fmt: skip


class Mamba2(nn.Module):
    """in_proj, causal convolution with SiLU, state space duality, gated norm, out_proj.

    in_proj has the rows [z, x, B, C, dt]. `A` is stored as -exp(A_log); `A`, `D` and `dt_bias` are
    float32 in every bundle.
    """

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
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D] from state {conv [B, K-1, E + 2 G N], ssm float32 [B, H, N, P]}."""
        config = self.config
        groups, states, inner = config.n_groups, config.d_state, config.d_inner
        z, u, dt = self.in_proj(x).split([inner, config.conv_channels, config.n_heads], dim=-1)
        # As the tail will hold it, so that a cut changes nothing where the tail is narrower than u.
        u = u.to(state["conv"].dtype).to(u.dtype)
        u, conv = causal_conv(u, self.conv_weight, self.conv_bias, state["conv"], activation="silu")
        u, B, C = torch.split(u, [inner, groups * states, groups * states], dim=-1)
        rows = u.shape[:-1]
        y, ssm = ssd(
            u.view(*rows, config.n_heads, config.head_dim), dt, self.A,
            B.view(*rows, groups, states), C.view(*rows, groups, states),
            D=self.D, dt_bias=self.dt_bias, dt_limit=config.dt_limit, state=state["ssm"],
        )  # fmt: skip
        y = y.flatten(-2)
        y = swiglu(z, y) if self.norm is None else self.norm(y, z)
        return self.out_proj(y), {"conv": conv, "ssm": ssm}
