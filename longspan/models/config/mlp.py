"""Sizes of the mixers that look at one token at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longspan.tensors import DType, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpConfig:
    """SwiGLU MLP (arXiv 2002.05202)."""

    kind: ClassVar[str] = "mlp"
    d_ff: int
    bias: bool = False

    @classmethod
    def tiny(cls) -> MlpConfig:
        """The smallest that runs."""
        return cls(d_ff=8)

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """Nothing: an MLP looks at one token at a time."""
        del dtype
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """A mixture of SwiGLU experts, each token going to a few of them (arXiv 2403.19887).

    Attributes:
        n_experts: how many there are.
        top_k: how many a token goes to.
        d_ff: inner width of each.
        renormalise: whether the chosen probabilities are divided by their sum.
    """

    kind: ClassVar[str] = "moe"
    n_experts: int
    top_k: int
    d_ff: int
    renormalise: bool = False

    @classmethod
    def tiny(cls) -> MoeConfig:
        """The smallest that runs."""
        return cls(n_experts=2, top_k=1, d_ff=8)

    @property
    def routing_bytes(self) -> int:
        """Bytes a token of the router's probabilities, their order, and the token's pairs."""
        return 32 * self.n_experts + (self.n_experts + 24) * self.top_k

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """Nothing: a mixture of experts looks at one token at a time."""
        del dtype
        return ()
