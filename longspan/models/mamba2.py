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
        """Gate and normalise y [B, L, E] by z [B, L, E]; do not read y after the call."""
        if self.groups == 1:
            return rms_norm(y, self.weight, eps=self.eps, gate=z, gate_first=True, overwrite=True)
        by_group = (*y.shape[:-1], self.groups, y.shape[-1] // self.groups)
        return rms_norm(
            y.view(by_group), self.weight.view(by_group[-2:]),
            eps=self.eps, gate=z.view(by_group), gate_first=True, overwrite=True,
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
        if not torch.onnx.is_in_onnx_export() and x.shape[1] > 1:
            return self._read_chunk(x, state)
        config = self.config
        z, u, dt = self.in_proj(x).split(
            [config.d_inner, config.conv_channels, config.n_heads], dim=-1
        )
        u, conv = self._convolve(u, state["conv"])
        y, ssm = self._recur(u, dt, state["ssm"])
        return self.out_proj(self._gate(y, z)), {"conv": conv, "ssm": ssm}

    def _read_chunk(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The same for many tokens, which need room: z is computed when the rest is gone."""
        config = self.config
        u, dt = torch.split(
            self.in_proj.part(x, slice(config.d_inner, None)),
            [config.conv_channels, config.n_heads],
            dim=-1,
        )
        # A view would keep the whole product.
        dt = dt.contiguous()
        u, conv = self._convolve(u, state["conv"])
        y, ssm = self._recur(u, dt, state["ssm"])
        del u, dt
        y = self._gate(y, self.in_proj.part(x, slice(config.d_inner)))
        return self.out_proj(y), {"conv": conv, "ssm": ssm}

    def _convolve(self, u: torch.Tensor, tail: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x, B and C [B, L, E + 2 G N] after the convolution and SiLU, and the next tail."""
        # As the tail will hold it, so that a cut changes nothing where the tail is narrower than u.
        u = u.to(tail.dtype).to(u.dtype)
        return causal_conv(u, self.conv_weight, self.conv_bias, tail, activation="silu")

    def _recur(
        self, u: torch.Tensor, dt: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """y [B, L, E] of x, B and C in u [B, L, E + 2 G N], and the next state."""
        config, rows = self.config, u.shape[:-1]
        groups, states = config.n_groups, config.d_state
        x, B, C = torch.split(u, [config.d_inner, groups * states, groups * states], dim=-1)
        y, ssm = ssd(
            x.view(*rows, config.n_heads, config.head_dim), dt, self.A,
            B.view(*rows, groups, states), C.view(*rows, groups, states),
            D=self.D, dt_bias=self.dt_bias, dt_limit=config.dt_limit, state=state,
        )  # fmt: skip
        return y.flatten(-2), ssm

    def _gate(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """y [B, L, E] gated by z [B, L, E], and normalised unless the gate is all there is."""
        return swiglu(z, y) if self.norm is None else self.norm(y, z)
