"""Sizes and state of the attention mixers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longspan.tensors import DType, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowAttentionConfig:
    """Attention over a sliding window, with RoPE at absolute positions (Samba, section 2.1)."""

    kind: ClassVar[str] = "window_attention"
    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int
    rope_base: float | None = 10000.0

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
