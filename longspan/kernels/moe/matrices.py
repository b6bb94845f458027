"""The matrices of experts: of floating point, or of 8 or 4 bits with the scales of their blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from longspan.kernels.checks import require_shape
from longspan.kernels.dequantize import check_quantized
from longspan.kernels.dequantize.reference import dequantize
from longspan.kernels.quantized_linear import quantized_linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A matrix [N, K] of 8 or 4 bits, or one for each of E experts, stacked.

    Attributes:
        weight: uint8 [E, N, blocks, bytes of a block], as `longspan.kernels.dequantize` has it.
        scales: float [E, N, blocks].
        zeros: uint8 [E, N, ceil(blocks bits / 8)]; None for half of the range.
        bits: of a number, 4 or 8.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int

    def __getitem__(self, expert: int) -> Packed:
        """One expert's."""
        zeros = None if self.zeros is None else self.zeros[expert]
        return Packed(
            weight=self.weight[expert], scales=self.scales[expert], zeros=zeros, bits=self.bits
        )

    @property
    def block(self) -> int:
        """Numbers of a row that share a scale."""
        return self.weight.shape[-1] * 8 // self.bits


Matrices = torch.Tensor | Packed


def sizes_of(matrices: Matrices) -> tuple[int, int]:
    """E and N of all experts' matrices [E, N, K]."""
    weight = matrices.weight if isinstance(matrices, Packed) else matrices
    return weight.shape[0], weight.shape[1]


def multiply(x: torch.Tensor, matrix: Matrices) -> torch.Tensor:
    """``x @ matrix.T`` [T, N] in the dtype of x [T, K], by one expert's matrix."""
    if isinstance(matrix, torch.Tensor):
        return linear(x, matrix.to(x.dtype))
    return quantized_linear(x, matrix.weight, matrix.scales, matrix.zeros, bits=matrix.bits)


def dense(matrix: Matrices, width: int, dtype: torch.dtype) -> torch.Tensor:
    """One expert's matrix as `dtype` [N, width], by plain torch."""
    if isinstance(matrix, torch.Tensor):
        return matrix.to(dtype)
    return dequantize(
        matrix.weight, matrix.scales, matrix.zeros,
        bits=matrix.bits, width=width, dtype=dtype, rows=None,
    )  # fmt: skip


def check_matrices(op: str, name: str, matrices: Matrices, shape: tuple[int, int, int]) -> None:
    """Check the matrices [E, N, K] of all experts.

    Raises:
        ValueError: they have another shape.
    """
    if isinstance(matrices, torch.Tensor):
        require_shape(op, name, matrices, shape)
    elif not torch.onnx.is_in_onnx_export():
        require_shape(op, name, matrices.weight, (*shape[:2], None, None))
        check_quantized(
            f"{op}: {name}",
            matrices.weight.flatten(0, 1),
            matrices.scales.flatten(0, 1),
            None if matrices.zeros is None else matrices.zeros.flatten(0, 1),
            bits=matrices.bits,
            width=shape[2],
        )
