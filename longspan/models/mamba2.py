"""The Mamba-2 mixer (arXiv 2405.21060, section 7.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from longspan.kernels.deferred_norm import Added, DeferredNorm, NextNorm
from longspan.kernels.linear_conv.reference import conv_of_part
from longspan.kernels.ssd import ssd
from longspan.kernels.ssd_norm_linear import ssd_norm_linear
from longspan.kernels.ssd_norm_linear.reference import gated_norm
from longspan.kernels.swiglu import swiglu
from longspan.models.config import Mamba2Config
from longspan.models.linear import Linear
from longspan.models.project import project

# x, dt, A, B and C.
DualInputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class GatedNorm(nn.Module):
    """RMSNorm of y silu(z), with one mean square for each group of E / G channels."""

    def __init__(self, width: int, *, groups: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Gate and normalise y [B, L, E] by z [B, L, E]; do not read y after the call."""
        return gated_norm(y, z, self.weight, self.groups, self.eps)


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
        self, x: torch.Tensor | DeferredNorm, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D] from state {conv [B, K-1, E + 2 G N], ssm float32 [B, H, N, P]}.

        The norm of one token may be deferred.
        """
        if isinstance(x, DeferredNorm) or x.shape[1] == 1 or torch.onnx.is_in_onnx_export():
            return self._step(x, state, None)
        return self._read_chunk(x, state)

    def step_and_add(
        self, x: torch.Tensor | DeferredNorm, state: dict[str, torch.Tensor], then: NextNorm
    ) -> tuple[Added, dict[str, torch.Tensor]]:
        """Read one token; give the residual's sum with what comes of it, and the sum's norm."""
        return self._step(x, state, then)

    @property
    def defers_norms(self) -> bool:
        """Whether `step_and_add` can be called: with a gated norm."""
        return self.norm is not None

    @property
    def reads_first(self) -> Linear:
        """The layer that multiplies what the mixer reads."""
        return self.in_proj

    def _step(
        self,
        x: torch.Tensor | DeferredNorm,
        state: dict[str, torch.Tensor],
        then: NextNorm | None,
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """Read one token, or export."""
        z, u, dt, conv = project(
            x, self.in_proj, self.conv_weight, self.conv_bias, state["conv"],
            first=self.config.d_inner,
        )  # fmt: skip
        inputs, options = self._dual(u, dt, state["ssm"])
        norm, out_proj = self.norm, self.out_proj
        if norm is None:
            assert then is None, "`defers_norms` said so"
            y, ssm = ssd(*inputs, **options)
            out = out_proj(swiglu(z, y.flatten(-2)))
        else:
            options |= out_proj.packing
            out, ssm = ssd_norm_linear(
                *inputs, z, norm.weight, out_proj.weight, out_proj.bias,
                eps=norm.eps, then=then, **options,
            )  # fmt: skip
        return out, {"conv": conv, "ssm": ssm}

    def _read_chunk(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The same for many tokens, which need room: z is computed when the rest is gone."""
        inner = self.config.d_inner
        u, dt, conv = conv_of_part(
            self.in_proj.part(x, slice(inner, None)),
            self.conv_weight, self.conv_bias, state["conv"], first=0,
        )[1:]  # fmt: skip
        # A view would keep the whole product.
        dt = dt.contiguous()
        inputs, options = self._dual(u, dt, state["ssm"])
        y, ssm = ssd(*inputs, **options)
        y = y.flatten(-2)
        del u, dt, inputs
        z = self.in_proj.part(x, slice(inner))
        y = swiglu(z, y) if self.norm is None else self.norm(y, z)
        del z
        return self.out_proj(y), {"conv": conv, "ssm": ssm}

    def _dual(
        self, u: torch.Tensor, dt: torch.Tensor, state: torch.Tensor
    ) -> tuple[DualInputs, dict[str, Any]]:
        """What the dual takes, of x, B and C in u [B, L, E + 2 G N]."""
        config, rows = self.config, u.shape[:-1]
        groups, states = config.n_groups, config.d_state
        x, B, C = torch.split(u, [config.d_inner, groups * states, groups * states], dim=-1)
        inputs = (
            x.view(*rows, config.n_heads, config.head_dim), dt, self.A,
            B.view(*rows, groups, states), C.view(*rows, groups, states),
        )  # fmt: skip
        options = {
            "D": self.D, "dt_bias": self.dt_bias, "dt_limit": config.dt_limit, "state": state
        }  # fmt: skip
        return inputs, options
