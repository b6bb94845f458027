"""Matrices of 8 or 4 bits for tests: every number drawn at random, those that fill a row up too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from longspan.models.config import Quantization

# Bits, numbers of a block, and whether zero points are left out.
PACKINGS = [(8, 32, True), (8, 128, False), (4, 32, False), (4, 64, True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A matrix [N, K] in blocks."""

    weight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int
    width: int

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Numbers, scales and zero points."""
        return self.weight, self.scales, self.zeros

    @property
    def named(self) -> dict[str, Any]:
        """All as the fused ops take it."""
        return {
            "weight": self.weight, "scales": self.scales, "zeros": self.zeros, "bits": self.bits
        }  # fmt: skip


def stored(
    outputs: int,
    width: int,
    *,
    bits: int,
    block: int,
    symmetric: bool,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Stored:
    """A matrix whose rows have a length near one; scales of either sign, in `dtype`."""
    how = Quantization(bits=bits, block=block, symmetric=symmetric)

    def drawn(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    zeros = how.zeros_shape(outputs, width)
    scales = torch.randn(how.scales_shape(outputs, width), device=device) / 2**bits / width**0.5
    return Stored(
        weight=drawn(how.weight_shape(outputs, width)),
        scales=scales.to(dtype),
        zeros=None if zeros is None else drawn(zeros),
        bits=bits,
        width=width,
    )
