"""Sizes and state of the attention mixers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from longspan.tensors import DType, TensorSpec

Positions = Literal["absolute", "compressed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsConfig:
    """What every attention mixer has: heads, and RoPE at absolute positions.

    Attributes:
        n_heads: H, heads of the queries.
        n_kv_heads: G, heads of the keys and values; a divisor of H.
        head_dim: P.
        rope_base: of RoPE's frequencies; None for no RoPE.
        rope_dims: even; only so many of each head's first channels are rotated. None for all.
        rope_interleaved: whether neighbouring channels are rotated together, not the halves.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        out_bias: whether the output's projection has one.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_base: float | None = 10000.0
    rope_dims: int | None = None
    rope_interleaved: bool = False
    qkv_bias: bool = False
    out_bias: bool = False

    @property
    def qkv_rows(self) -> int:
        """Channels of queries, keys and values together: (H + 2 G) P."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim


def in_int8(state: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """An attention mixer's state whose keys and values [1, C, G, P] are int8.

    Each has its scales beside it, [1, C, G] in the dtype that it had.
    """
    specs: list[TensorSpec] = []
    for spec in state:
        if spec.name not in ("k", "v"):
            specs.append(spec)
            continue
        scale = replace(spec, name=f"{spec.name}_scale", shape=spec.shape[:-1])
        specs += [replace(spec, dtype="int8"), scale]
    return tuple(specs)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowAttentionConfig(HeadsConfig):
    """Attention over a sliding window of W tokens (Samba, section 2.1)."""

    kind: ClassVar[str] = "window_attention"
    window: int

    @classmethod
    def tiny(cls) -> WindowAttentionConfig:
        """The smallest that runs."""
        return cls(n_heads=1, n_kv_heads=1, head_dim=4, window=2)

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """Keys and values of the last W-1 tokens [1, W-1, G, P], and the tokens read so far."""
        past = (1, self.window - 1, self.n_kv_heads, self.head_dim)
        return (
            TensorSpec(name="k", shape=past, dtype=dtype),
            TensorSpec(name="v", shape=past, dtype=dtype),
            TensorSpec(name="position", shape=(1,), dtype="int64"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FullAttentionConfig(HeadsConfig):
    """Attention over every token before (arXiv 1706.03762, section 3.2).

    Attributes:
        d_conv: K, of a causal convolution over queries, keys and values before RoPE, as the
            attention layers of mamba_ssm's hybrids have; None for none.
    """

    kind: ClassVar[str] = "full_attention"
    d_conv: int | None = None

    @classmethod
    def tiny(cls) -> FullAttentionConfig:
        """The smallest that runs."""
        return cls(n_heads=1, n_kv_heads=1, head_dim=4)

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """Keys and values of all tokens, caches [1, C, G, P], and the tokens read so far.

        With a convolution also its last inputs [1, K-1, (H + 2 G) P].
        """
        past = (1, 0, self.n_kv_heads, self.head_dim)
        kept = (
            TensorSpec(name="k", shape=past, dtype=dtype, counter="position"),
            TensorSpec(name="v", shape=past, dtype=dtype, counter="position"),
            TensorSpec(name="position", shape=(1,), dtype="int64"),
        )
        if self.d_conv is None:
            return kept
        return (
            *kept,
            TensorSpec(name="conv", shape=(1, self.d_conv - 1, self.qkv_rows), dtype=dtype),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorAttentionConfig(HeadsConfig):
    """Attention that reads closed segments through their anchors (AnLLM, arXiv 2402.07616).

    The token at absolute position t is an anchor if its id is one of `anchor_ids`, or if
    `anchor_every` divides t + 1. An anchor ends its segment.

    Attributes:
        anchor_ids: ids that are anchors wherever they stand.
        anchor_every: tokens of a segment that no such id ends before; None for no limit.
        positions: what RoPE turns by. "compressed" is what the authors' inference computes: a
            call's first token is turned by the entries that the cache holds when the call begins,
            so the result depends on how the text is cut into calls.
    """

    kind: ClassVar[str] = "anchor_attention"
    anchor_ids: tuple[int, ...] = ()
    anchor_every: int | None = None
    positions: Positions = "absolute"

    @property
    def rule(self) -> tuple[tuple[int, ...], int | None]:
        """What says which tokens are anchors: layers that share it keep as many entries."""
        return self.anchor_ids, self.anchor_every

    @classmethod
    def tiny(cls) -> AnchorAttentionConfig:
        """The smallest that runs."""
        return cls(n_heads=1, n_kv_heads=1, head_dim=4, anchor_ids=(0,), anchor_every=2)

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """Keys and values of anchors and the open segment, caches [1, C, G, P], and counters.

        `anchors` of the `entries` in use are anchors, the first ones; `position` tokens are read.
        """
        past = (1, 0, self.n_kv_heads, self.head_dim)
        counters = ("anchors", "entries", "position")
        return (
            TensorSpec(name="k", shape=past, dtype=dtype, counter="entries"),
            TensorSpec(name="v", shape=past, dtype=dtype, counter="entries"),
            *(TensorSpec(name=name, shape=(1,), dtype="int64") for name in counters),
        )
