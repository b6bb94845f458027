"""RMSNorm whose division is left to the product that reads it.

    W (g s / rms(s)) = W (g s) / rms(s)

So whoever has a part of s can leave its part of g s, without waiting for the other parts' squares.
Those are summed beside the product. bfloat16 and float32 alone: g s is as large as the residual,
which float16 may not hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan.kernels.choice import chosen

DTYPES = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredNorm:
    """A row before the division.

    Attributes:
        row: g s, float [B, L, D].
        squares: sums of parts of s^2, float32 or float64 [B, L, parts].
        eps: added to the mean square, > 0.
        sums: float32, factors and sums of the groups of a row that lies as
            `quantized_linear.laid_out` has it, for the packed matrix that `NextNorm` named; None
            of a plain one.
    """

    row: torch.Tensor
    squares: torch.Tensor
    eps: float
    sums: torch.Tensor | None = None

    def root(self) -> torch.Tensor:
        """1 / sqrt(mean(s^2) + eps): [B, L, 1]."""
        mean = self.squares.sum(dim=-1, keepdim=True) / self.row.shape[-1]
        return torch.rsqrt(mean + self.eps)

    def divided(self, product: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """A linear layer of the norm, by its product with the row [B, L, O]; in the row's dtype."""
        assert self.sums is None, "only Triton's products read a row that is laid out"
        y = product * self.root()
        return (y if bias is None else y + bias.to(self.row.dtype)).to(self.row.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextNorm:
    """The residual that a linear layer's result is added to, and the norm of the sum.

    Attributes:
        residual: float [B, L, D]. The sum may take its place in memory: do not read it afterwards.
        weight: g, float [D].
        eps: added to the mean square, > 0.
        matrix: uint8 [O, blocks, bytes of a block] that will multiply the row; None for none that
            is packed.
        bits: of its numbers, 4 or 8; None without it.
    """

    residual: torch.Tensor
    weight: torch.Tensor
    eps: float
    matrix: torch.Tensor | None = None
    bits: int | None = None

    def add(self, y: torch.Tensor) -> Added:
        """The sum with y [B, L, D], in the residual's dtype; its norm in that of y."""
        total = self.residual + y.to(self.residual.dtype)
        row = (total * self.weight.to(total.dtype)).to(y.dtype)
        squares = total.square().sum(dim=-1, keepdim=True)
        return total, DeferredNorm(row=row, squares=squares, eps=self.eps)


# A residual's sum, and the sum's norm.
Added = tuple[torch.Tensor, DeferredNorm]


def defers_norms(x: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the norm of x [B, L, D], in `dtype`, is best deferred: of one row, in Triton.

    Elsewhere nothing is saved, and graphs keep the plain ops.
    """
    if torch.onnx.is_in_onnx_export() or dtype not in DTYPES or x.shape[:-1].numel() != 1:
        return False
    return all(chosen(op, x) == "triton" for op in ("linear_conv", "ssd_norm_linear"))
