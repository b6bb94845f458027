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
