"""The Conba mixer, as longspan defines it (docs/mixcon.md)."""

from __future__ import annotations

import torch
from torch import nn

from longspan.kernels.conba import ConbaState, conba
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.swiglu import swiglu
from longspan.models.config import ConbaConfig
from longspan.models.linear import Linear
from longspan.models.softplus import softplus_


class HeadNorm(nn.Module):
    """RMSNorm of each head's output, with a weight, then the gate; in float32."""

    def __init__(self, width: int, *, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Normalise y [B, L, H, P] and gate it by z [B, L, D]; do not read y after the call."""
        weight = self.weight.view(y.shape[-2:])
        gate = z.view(y.shape)
        return rms_norm(y, weight, eps=self.eps, gate=gate, overwrite=True).flatten(-2)


class Conba(nn.Module):
    """in_proj, selection, delayed and scaled state under an adaptive gain, gated norm, out_proj.

    in_proj has the rows of `ConbaConfig.in_rows`. `A` is stored as -exp(A_log); `A`, `D` and
    `dt_bias`, the scaling's bias, are float32 in every bundle.
    """

    def __init__(self, config: ConbaConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        heads, states, width = config.n_heads, config.d_state, config.head_dim
        assert heads * width == d_model, "a head reads and writes its own part of the model's width"
        self.in_proj = Linear(d_model, sum(config.in_rows), dtype=dtype)
        self.select_proj = Linear(config.d_select, heads * states, dtype=dtype)
        self.dt_bias = nn.Parameter(torch.empty(heads, states, dtype=torch.float32))
        self.A = nn.Parameter(torch.empty(heads, states, dtype=torch.float32))
        self.w_tau = nn.Parameter(torch.empty(heads, states, dtype=dtype))
        self.C = nn.Parameter(torch.empty(heads, width, states, dtype=dtype))
        self.D = nn.Parameter(torch.empty(heads, width, dtype=torch.float32))
        self.norm = HeadNorm(d_model, eps=config.norm_eps, dtype=dtype)
        self.out_proj = Linear(d_model, d_model, dtype=dtype)

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D] from the state that `ConbaConfig.state` describes.

        Of a chunk nothing is freed below what lives on: torch's allocator is left without holes.
        """
        config = self.config
        by_state = (*x.shape[:-1], config.n_heads, config.d_state)
        by_output = (*x.shape[:-1], config.n_heads, config.head_dim)
        gate, up, dt, *desired, z = self.in_proj(x).split(config.in_rows, dim=-1)
        s = self.select_proj(swiglu(gate, up, overwrite=True)).view(by_state)
        y, after = conba(
            s, self._scaling(dt.view(by_state)), x.view(by_output),
            desired[0].view(by_output) if desired else None,
            self.w_tau, self.C, self.D,
            state=ConbaState(**state), activation=config.activation,
            update_every=config.update_every, eta=config.eta, k_max=config.k_max,
        )  # fmt: skip
        y = self.norm(y, z)
        # The output takes the place of what in_proj gave.
        del gate, up, dt, desired, z, s
        return self.out_proj(y), {name: getattr(after, name) for name in state}

    def _scaling(self, dt: torch.Tensor) -> torch.Tensor:
        """exp(softplus(dt + bias) A), in (0, 1); float32, as a decay near one must be."""
        return softplus_(dt + self.dt_bias).mul_(self.A).exp_()
