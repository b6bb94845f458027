"""A matrix of 8 or 4 bits as floating point, plain torch."""

from __future__ import annotations

import torch


def dequantize(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    bits: int,
    width: int,
    dtype: torch.dtype,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    """See `longspan.kernels.dequantize.dequantize`."""
    if rows is not None:
        weight, scales = weight[rows], scales[rows]
        zeros = None if zeros is None else zeros[rows]
    wide = torch.promote_types(dtype, torch.float32)
    # In place from here on: a large matrix stands once in `wide`.
    numbers = unpacked(weight, bits).to(wide)
    if zeros is None:
        numbers -= 2 ** (bits - 1)
    else:
        numbers -= unpacked(zeros, bits)[..., : weight.shape[-2], None].to(wide)
    numbers *= scales[..., None].to(wide)
    return numbers.flatten(-2)[..., :width].to(dtype)


def unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [..., n] as uint8 [..., 8 n / bits]: of 4 bits, a byte's low half first."""
    if bits == 8:
        return packed
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
