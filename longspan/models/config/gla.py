"""Sizes and state of the mixer of gated linear attention and retention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longspan.tensors import DType, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class GlaConfig:
    """Gated linear attention (arXiv 2312.06635, section 4.4) or retention (arXiv 2307.08621).

    Attributes:
        n_heads: H.
        key_dim: key channels of a head, K.
        value_dim: value channels of a head, V.
        gate_rank: inner width of the two matrices that make a decay for each token and key channel;
            None for retention, where head h keeps 1 - 2^(-5-h) of its state at every token.
        gate_divisor: what the log of the gate is divided by; without effect on fixed decays.
        rope_base: base of the rotation of queries and keys, K even; None for no rotation.
        norm_eps: of the RMSNorm of each head's output.
    """

    kind: ClassVar[str] = "gla"
    n_heads: int
    key_dim: int
    value_dim: int
    gate_rank: int | None = 16
    gate_divisor: float = 16.0
    rope_base: float | None = None
    norm_eps: float = 1e-5

    @classmethod
    def tiny(cls) -> GlaConfig:
        """The smallest that runs."""
        return cls(n_heads=1, key_dim=4, value_dim=4, gate_rank=2)

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """The recurrent state [1, H, K, V], and with a rotation the tokens read so far."""
        del dtype
        shape = (1, self.n_heads, self.key_dim, self.value_dim)
        recurrent = TensorSpec(name="recurrent", shape=shape, dtype="float32")
        if self.rope_base is None:
            return (recurrent,)
        return recurrent, TensorSpec(name="position", shape=(1,), dtype="int64")
