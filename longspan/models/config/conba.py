"""Sizes and state of the Conba mixer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from longspan.tensors import DType, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ConbaConfig:
    """Conba as longspan defines it (docs/mixcon.md), over H heads of P channels, H P = D.

    Attributes:
        n_heads: H.
        head_dim: P, the outputs of a head.
        d_state: N, the entries of a head's state.
        d_select: inner width of the selection's SwiGLU.
        delay: T, how many tokens back the delayed state is.
        gain: ``"token"``: the gain is updated by every token; ``"chunk"``: by the tokens after
            which a multiple of `gain_chunk` has been read; ``"off"``: there is none.
        gain_chunk: tokens between two updates, 2 or more; None unless `gain` is ``"chunk"``.
        eta: learning rate of the gain.
        k_max: largest Frobenius norm of a head's gain.
        activation: f.
        norm_eps: of the RMSNorm of each head's output.
    """

    kind: ClassVar[str] = "conba"
    n_heads: int
    head_dim: int
    d_state: int
    d_select: int
    delay: int = 1
    gain: Literal["token", "chunk", "off"] = "token"
    gain_chunk: int | None = None
    eta: float = 0.01
    k_max: float = 1.0
    activation: Literal["identity", "tanh"] = "identity"
    norm_eps: float = 1e-5

    @property
    def update_every(self) -> int | None:
        """Tokens between two updates of the gain; None where there is no gain."""
        return {"token": 1, "chunk": self.gain_chunk, "off": None}[self.gain]

    @property
    def in_rows(self) -> tuple[int, ...]:
        """Rows of in_proj: the selection's gate and up, the scaling, desired output, output gate.

        Without a gain there is no desired output.
        """
        inner = self.n_heads * self.head_dim
        desired = () if self.gain == "off" else (inner,)
        return self.d_select, self.d_select, self.n_heads * self.d_state, *desired, inner

    @classmethod
    def tiny(cls) -> ConbaConfig:
        """The smallest that runs."""
        return cls(n_heads=2, head_dim=2, d_state=2, d_select=4)

    def state(self, dtype: DType) -> tuple[TensorSpec, ...]:
        """All float32: 4 H N (1 + T + P) + 4 H P bytes; an int64 position with a gain by chunks."""
        del dtype
        heads, states, width = self.n_heads, self.d_state, self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "x": (1, heads, states),
            "delay": (1, self.delay, heads, states),
        }
        if self.gain != "off":
            shapes |= {"gain": (1, heads, states, width), "error": (1, heads, width)}
        specs = [
            TensorSpec(name=name, shape=shape, dtype="float32") for name, shape in shapes.items()
        ]
        if self.gain == "chunk":
            specs.append(TensorSpec(name="position", shape=(1,), dtype="int64"))
        return tuple(specs)
