"""Matrices of floating point as numbers of 8 or 4 bits in blocks, each with a scale.

    numbers, scales, zeros = quantize_matrix(matrix, stored, "bfloat16")

Each weight is off by half of its block's scale at most. Symmetric: the numbers reach from -8 to 7
(-128 to 127), the scale's sign lets the longer side be that of the larger weights, and its size is
the smallest with which no weight lies more than half a step beyond either end. Asymmetric: the zero
point is rounded, and the range is that of the block and zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from longspan.errors import BadInput
from longspan.models.checkpoint import Checkpoint
from longspan.models.config import Quantization
from longspan.tensors import DType

# Name of a quantised parameter's scales and zero points: those of `mixer.in_proj.weight` are
# `mixer.in_proj.scales`, those of `head` are `head_scales`.
_PARTS = ("scales", "zeros")
# Numbers, scales, and zero points where they are stored.
Packed = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def quantize_matrix(matrix: torch.Tensor, stored: Quantization, dtype: DType) -> Packed:
    """Quantise a matrix.

    Args:
        matrix: float [..., N, K], finite.
        stored: bits, block, and whether there are zero points.
        dtype: of the scales, which are rounded up to it.

    Returns:
        uint8 [..., N, blocks, block bits / 8], scales `dtype` [..., N, blocks], and zero points
        uint8 [..., N, ceil(blocks bits / 8)] or None; `longspan.kernels.dequantize` reads them.
    """
    *rows, width = matrix.shape
    blocks = stored.blocks(width)
    padded = torch.nn.functional.pad(matrix.float(), (0, blocks * stored.block - width))
    parts = padded.view(*rows, blocks, stored.block)
    scales, zeros = block_range(parts, stored, dtype)
    return packed_matrix(rounded(parts, scales, zeros, stored), scales, zeros, stored)


def block_range(
    parts: torch.Tensor, stored: Quantization, dtype: DType
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales in `dtype` [...] and zero points float32 [...] of blocks float32 [..., block]."""
    top = 2**stored.bits - 1
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    if not stored.symmetric:
        scales = rounded_up((high - low) / top, dtype)
        return scales, (-low / _divisor(scales)).round().clamp(0, top)
    half = top // 2 + 1
    larger, smaller = torch.maximum(high, -low), torch.minimum(high, -low)
    size = rounded_up(torch.maximum(larger / (half + 0.5), smaller / (half - 0.5)), dtype)
    return torch.where(high > -low, -size, size), torch.full_like(low, half)


def rounded(
    parts: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, stored: Quantization
) -> torch.Tensor:
    """The nearest numbers, float32 [..., block], of weights float32 [..., block]."""
    numbers = (parts / _divisor(scales)[..., None]).round() + zeros[..., None]
    return numbers.clamp(0, 2**stored.bits - 1)


def packed_matrix(
    numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, stored: Quantization
) -> Packed:
    """What `quantize_matrix` gives of numbers [N, blocks, block] and what they are rounded by."""
    return (
        packed(numbers.to(torch.uint8), stored.bits),
        scales,
        None if stored.symmetric else packed(zeros.to(torch.uint8), stored.bits),
    )


def packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [..., n] as uint8 [..., ceil(n bits / 8)]: of 4 bits, a byte's low half first."""
    if bits == 8:
        return numbers
    even = torch.nn.functional.pad(numbers, (0, numbers.shape[-1] % 2))
    return even[..., ::2] | (even[..., 1::2] << 4)


def rounded_up(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Values float32 >= 0 in `dtype`, none smaller than it was: a scale too small would clip."""
    result = values.to(getattr(torch, dtype))
    if dtype == "float32":
        return result
    # The next larger number of 16 bits has the next larger bits.
    above = (result.view(torch.int16) + 1).view(result.dtype)
    return torch.where(result.float() < values, above, result)


def _divisor(scales: torch.Tensor) -> torch.Tensor:
    """The scales as float32; 1 where all of a block is zero."""
    wide = scales.float()
    return torch.where(wide != 0, wide, 1.0)


def quantized_names(checkpoint: Checkpoint) -> frozenset[str]:
    """Names of the parameters that are matrices of 8 or 4 bits under the checkpoint's config."""
    uint8 = {spec.name for spec in checkpoint.specs() if spec.dtype == "uint8"}
    return frozenset(uint8 & checkpoint.weights.keys())


def require_finite(name: str, matrix: torch.Tensor, stored: Quantization) -> None:
    """Refuse a matrix with NaN or infinities.

    Raises:
        BadInput: it has some.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise BadInput(
            f"weights of {stored.bits} bits were asked for, and {name} holds NaN or infinities, "
            "which numbers of 8 or 4 bits cannot. Export with weights='bfloat16' "
            "(--weights bfloat16)."
        )


class QuantizedWeights:
    """Reads a model's parameters by name, quantised where its config says so.

    Args:
        read: gives a parameter of floating point by name.
        checkpoint: its config says how matrices are stored.
        dtype: of the scales.
        rounded: matrices that are quantised already, by name; others are rounded to the nearest.
    """

    def __init__(
        self,
        read: Callable[[str], torch.Tensor],
        checkpoint: Checkpoint,
        dtype: DType,
        rounded: Mapping[str, Packed],
    ) -> None:
        self._read, self._stored = read, checkpoint.config.quantization
        self._dtype, self._rounded = dtype, rounded
        self._names = {
            part_name(name, part): (name, part)
            for name in quantized_names(checkpoint)
            for part in ("weight", *_PARTS)
        }
        # The matrix quantised last: its parts are asked for in turn.
        self._last: tuple[str, dict[str, torch.Tensor | None]] | None = None

    def __call__(self, name: str) -> torch.Tensor:
        """One parameter.

        Raises:
            BadInput: a matrix holds NaN or infinities, or its scales pass their dtype.
        """
        if name not in self._names:
            return self._read(name)
        whole, part = self._names[name]
        if self._last is None or self._last[0] != whole:
            self._last = whole, self._parts(whole)
        result = self._last[1][part]
        assert result is not None, f"{name} is stored, so it was made"
        return result

    def _parts(self, name: str) -> dict[str, torch.Tensor | None]:
        assert self._stored is not None, f"{name} is quantised, so the config says how"
        weight, scales, zeros = self._rounded.get(name) or self._nearest(name, self._stored)
        if not bool(torch.isfinite(scales).all()):
            raise BadInput(
                f"weights of {self._stored.bits} bits were asked for with scales in {self._dtype}, "
                f"and those of {name} pass its largest value. Convert the checkpoint to bfloat16 "
                "first."
            )
        return {"weight": weight, "scales": scales, "zeros": zeros}

    def _nearest(self, name: str, stored: Quantization) -> Packed:
        matrix = self._read(name)
        require_finite(name, matrix, stored)
        return quantize_matrix(matrix, stored, self._dtype)


def part_name(name: str, part: str) -> str:
    """Name of a part of the quantised parameter `name`."""
    if part == "weight":
        return name
    prefix, dot, last = name.rpartition(".")
    return f"{prefix}.{part}" if dot and last == "weight" else f"{name}_{part}"
