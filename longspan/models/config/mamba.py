"""Sizes and state of the Mamba-1 and Mamba-2 mixers."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from longspan.tensors import DType, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaConfig:
    """Mamba-1 mixer (arXiv 2312.00752, section 3.4).

    Falcon-Mamba (arXiv 2410.05355) adds an RMSNorm without weights on dt, B and C each, with
    `bcdt_norm_eps`; None for no such norms.
    """

    kind: ClassVar[str] = "mamba"
    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    conv_bias: bool = True
    proj_bias: bool = False
    bcdt_norm_eps: float | None = None

    @classmethod
    def tiny(cls) -> MambaConfig:
        """The smallest that runs."""
        return cls(d_inner=8, d_state=4, d_conv=4, dt_rank=1)

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """The convolution's last inputs [1, K-1, E] and the recurrent state [1, E, N]."""
        conv = (1, self.d_conv - 1, self.d_inner)
        return (
            TensorSpec(name="conv", shape=conv, dtype=dtype),
            TensorSpec(name="ssm", shape=(1, self.d_inner, self.d_state), dtype="float32"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Config:
    """Mamba-2 mixer (arXiv 2405.21060, section 7.1): E = H P channels, B and C in G groups.

    Attributes:
        n_heads: H.
        head_dim: P.
        n_groups: G, a divisor of H.
        d_state: N.
        d_conv: K.
        conv_bias: whether the convolution has a bias.
        proj_bias: whether in_proj and out_proj have one.
        dt_min: least step, after softplus.
        dt_max: largest step; None for no limit, which JSON could not hold as a number.
        norm_eps: of the gated RMSNorm; None where the gate is all there is.
        d_per_channel: whether the skip D is [H, P] and not [H].
    """

    kind: ClassVar[str] = "mamba2"
    n_heads: int
    head_dim: int
    n_groups: int
    d_state: int
    d_conv: int
    conv_bias: bool = True
    proj_bias: bool = False
    dt_min: float = 0.0
    dt_max: float | None = None
    norm_eps: float | None = 1e-5
    d_per_channel: bool = False

    @property
    def d_inner(self) -> int:
        """E = H P."""
        return self.n_heads * self.head_dim

    @property
    def conv_channels(self) -> int:
        """Channels that the convolution reads, those of x, B and C: E + 2 G N."""
        return self.d_inner + 2 * self.n_groups * self.d_state

    @property
    def dt_limit(self) -> tuple[float, float]:
        """The range that steps are clamped to."""
        return self.dt_min, inf if self.dt_max is None else self.dt_max

    @classmethod
    def tiny(cls) -> Mamba2Config:
        """The smallest that runs."""
        return cls(n_heads=2, head_dim=4, n_groups=1, d_state=4, d_conv=4)

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """The convolution's last inputs [1, K-1, E + 2 G N], the recurrent state [1, H, N, P]."""
        conv = (1, self.d_conv - 1, self.conv_channels)
        ssm = (1, self.n_heads, self.d_state, self.head_dim)
        return (
            TensorSpec(name="conv", shape=conv, dtype=dtype),
            TensorSpec(name="ssm", shape=ssm, dtype="float32"),
        )
