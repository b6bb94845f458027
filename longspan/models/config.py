"""What a model is made of: one dataclass a layer kind, and the list of layers. No torch here.

A layer is one residual block, ``x + mixer(norm(x))``: a Samba unit is four of them. Each layer
config tells the tensors it carries from token to token (`state`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Any, ClassVar

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

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """The convolution's last inputs [1, K-1, E + 2 G N], the recurrent state [1, H, N, P]."""
        conv = (1, self.d_conv - 1, self.conv_channels)
        ssm = (1, self.n_heads, self.d_state, self.head_dim)
        return (
            TensorSpec(name="conv", shape=conv, dtype=dtype),
            TensorSpec(name="ssm", shape=ssm, dtype="float32"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """Attention over a sliding window, with RoPE at absolute positions (Samba, section 2.1)."""

    kind: ClassVar[str] = "attention"
    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int
    rope_base: float | None = 10000.0

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """Keys and values of the last W-1 tokens [1, W-1, G, P], and the tokens read so far."""
        past = (1, self.window - 1, self.n_kv_heads, self.head_dim)
        return (
            TensorSpec(name="k", shape=past, dtype=dtype),
            TensorSpec(name="v", shape=past, dtype=dtype),
            TensorSpec(name="position", shape=(1,), dtype="int64"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpConfig:
    """SwiGLU MLP (arXiv 2002.05202)."""

    kind: ClassVar[str] = "mlp"
    d_ff: int

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """Nothing: an MLP looks at one token at a time."""
        del dtype
        return ()


LayerConfig = MambaConfig | Mamba2Config | AttentionConfig | MlpConfig

LAYER_KINDS: dict[str, type[LayerConfig]] = {
    kind.kind: kind for kind in (MambaConfig, Mamba2Config, AttentionConfig, MlpConfig)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder: embedding, residual layers, final norm, head."""

    family: str
    vocab_size: int
    d_model: int
    layers: tuple[LayerConfig, ...]
    norm_eps: float = 1e-5
    tied: bool = True

    def state_layout(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """Every state tensor as ``layers.{i}.{name}``, for one sequence; tails in `dtype`."""
        return tuple(
            TensorSpec(name=f"layers.{i}.{spec.name}", shape=spec.shape, dtype=spec.dtype)
            for i, layer in enumerate(self.layers)
            for spec in layer.state(dtype)
        )

    def layers_by_kind(self) -> dict[str, int]:
        """How many layers of each kind there are, in the order of first appearance."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.kind] = counts.get(layer.kind, 0) + 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `from_json` reads back."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layers"}
        return plain | {"layers": [{"kind": x.kind} | asdict(x) for x in self.layers]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: a layer kind or a field is unknown.
        """
        return cls(**{**data, "layers": tuple(_layer(item) for item in data["layers"])})


def _layer(item: dict[str, Any]) -> LayerConfig:
    kind = item["kind"]
    if kind not in LAYER_KINDS:
        known = ", ".join(LAYER_KINDS)
        raise ValueError(f"layer kind {kind!r} is unknown; this longspan knows {known}")
    return LAYER_KINDS[kind](**{key: value for key, value in item.items() if key != "kind"})
