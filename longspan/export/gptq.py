"""Round a matrix so that what it gives on a text stays near: GPTQ (arXiv 2210.17323, algorithm 1).

    numbers, scales, zeros = round_for_inputs(matrix, gram, stored, "bfloat16")

From left to right, the columns that are still to be rounded make good the error of each that was,
as far as the layer's inputs X let them: greedily, ||(W - Q) X||^2 is made small. A block's scales
are chosen when the columns before it are rounded, to cost the least of it. It knows nothing of
models.
"""

from __future__ import annotations

import torch

from longspan.export.quantize import Packed, block_range, packed_matrix, rounded
from longspan.models.config import Quantization
from longspan.tensors import DType

# Of the mean of the gram's diagonal, as the authors have it: no text shows all inputs.
DAMPING = 0.01
# Of a scale that reaches a block's largest weight: a smaller one clips it and rounds others better.
SHARES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)


def round_for_inputs(
    matrix: torch.Tensor,
    gram: torch.Tensor,
    stored: Quantization,
    dtype: DType,
    *,
    damping: float = DAMPING,
) -> Packed:
    """Quantise a matrix for the inputs that its layer has.

    Args:
        matrix: float [N, K], finite.
        gram: float64 [K, K], X^T X over inputs X [tokens, K], finite.
        stored: bits, block, and whether there are zero points.
        dtype: of the scales.
        damping: what an error counts wherever the inputs point, as a share of their mean square.

    Returns:
        As `longspan.export.quantize.quantize_matrix`.
    """
    rows, width = matrix.shape
    blocks, block = stored.blocks(width), stored.block
    factor = _inverse_factor(gram, damping).float()
    left = torch.nn.functional.pad(matrix.float(), (0, blocks * block - width))
    numbers = torch.empty(rows, blocks, block)
    scales = torch.empty(rows, blocks, dtype=getattr(torch, dtype))
    zeros = torch.empty(rows, blocks)
    for i in range(blocks):
        start, end = i * block, min((i + 1) * block, width)
        part = left[:, start : start + block]
        costs = torch.zeros(block)
        costs[: end - start] = factor.diagonal()[start:end] ** -2
        scale, zero = _cheapest_range(part, costs, stored, dtype)
        scales[:, i], zeros[:, i] = scale, zero
        errors = torch.empty(rows, end - start)
        for k in range(start, end):
            number = rounded(left[:, k, None], scale, zero, stored)[:, 0]
            error = (left[:, k] - (number - zero) * scale.float()) / factor[k, k]
            left[:, k + 1 : end] -= error[:, None] * factor[k, k + 1 : end]
            numbers[:, i, k - start], errors[:, k - start] = number, error
        numbers[:, i, end - start :] = zero[:, None]
        left[:, end:width] -= errors @ factor[start:end, end:]
    return packed_matrix(numbers, scales, zeros, stored)


def _cheapest_range(
    part: torch.Tensor, costs: torch.Tensor, stored: Quantization, dtype: DType
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `block_range` of [N, block], but the scales with the least squared error times `costs`."""
    widest, zeros = block_range(part, stored, dtype)
    best, least = widest, torch.full_like(zeros, torch.inf)
    for share in SHARES:
        scales = (widest.float() * share).to(widest.dtype)
        kept = (rounded(part, scales, zeros, stored) - zeros[:, None]) * scales.float()[:, None]
        error = ((kept - part).square() * costs).sum(-1)
        best = torch.where(error < least, scales, best)
        least = torch.minimum(error, least)
    return best, zeros


def _inverse_factor(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """U, upper triangular, with U^T U the inverse of the damped gram (section 3.3, step 3)."""
    mean = gram.diagonal().mean()
    added = torch.where(mean > 0, damping * mean, 1.0)
    damped = gram + added * torch.eye(len(gram), dtype=gram.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
