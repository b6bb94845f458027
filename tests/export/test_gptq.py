"""GPTQ: the paper's equations column by column in float64, and what rounding for inputs gains."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.export import gptq
from longspan.export.gptq import DAMPING, round_for_inputs
from longspan.export.quantize import Packed, quantize_matrix
from longspan.kernels.dequantize.reference import dequantize
from longspan.models.config import Quantization


def values(found: Packed, stored: Quantization, width: int) -> torch.Tensor:
    """The matrix float64 [N, K] that was written."""
    return dequantize(*found, bits=stored.bits, width=width, dtype=torch.float64, rows=None)


def correlated(width: int, tokens: int = 300, seed: int = 0) -> torch.Tensor:
    """Inputs float64 [tokens, K], most of whose size lies in a few directions."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(tokens, 6, generator=generator, dtype=torch.float64)
    mixed = few @ torch.randn(6, width, generator=generator, dtype=torch.float64)
    return mixed + 0.2 * torch.randn(tokens, width, generator=generator, dtype=torch.float64)


def paper(
    matrix: torch.Tensor, gram: torch.Tensor, scales: torch.Tensor, half: int
) -> torch.Tensor:
    """Equations 2 and 3: after each column, the inverse of what is left of the Hessian anew."""
    width = matrix.shape[1]
    hessian = gram + DAMPING * gram.diagonal().mean() * torch.eye(width, dtype=gram.dtype)
    left, result = matrix.double().clone(), torch.zeros(matrix.shape, dtype=torch.float64)
    for k in range(width):
        inverse = torch.linalg.inv(hessian[k:, k:])
        scale = scales[:, k]
        result[:, k] = (left[:, k] / scale).round().clamp(-half, half - 1) * scale
        left[:, k:] -= ((left[:, k] - result[:, k]) / inverse[0, 0])[:, None] * inverse[0]
    return result


def test_it_is_what_the_paper_says() -> None:
    """With the scales that were chosen, the numbers follow column by column."""
    generator = torch.Generator().manual_seed(1)
    matrix, inputs = torch.randn(8, 80, generator=generator), correlated(80)
    stored, gram = Quantization(bits=4), inputs.T @ inputs
    found = round_for_inputs(matrix, gram, stored, "float32")
    scales = found[1].double().repeat_interleave(32, dim=1)[:, :80]
    wanted = paper(matrix, gram, scales, 8)
    same = (values(found, stored, 80) - wanted).abs() < 1e-5 * scales.abs()
    # A weight halfway between two numbers goes either way in float32, and others of its row follow.
    assert float(same.double().mean()) > 0.98


@settings(deadline=None, max_examples=25)
@given(
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([32, 64]),
    symmetric=st.booleans(),
    width=st.sampled_from([32, 33, 96, 130]),
    seed=st.integers(0, 9),
)
def test_outputs_are_nearer_than_of_the_nearest(
    bits: int, block: int, symmetric: bool, width: int, seed: int
) -> None:
    stored = Quantization(bits=bits, block=block, symmetric=symmetric)
    matrix = torch.randn(9, width, generator=torch.Generator().manual_seed(seed))
    matrix[1] = 0
    inputs = correlated(width, seed=seed)

    def error(found: Packed) -> float:
        off = values(found, stored, width) - matrix.double()
        return float((inputs @ off.T).square().sum())

    found = round_for_inputs(matrix, inputs.T @ inputs, stored, "bfloat16")
    nearest = quantize_matrix(matrix, stored, "bfloat16")
    assert [each if each is None else each.shape for each in found] == [
        each if each is None else each.shape for each in nearest
    ]
    assert error(found) < 0.7 * error(nearest)
    assert not values(found, stored, width)[1].any()


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_that_say_nothing_round_to_the_nearest(
    symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "SHARES", (1.0,))
    stored = Quantization(bits=4, symmetric=symmetric)
    matrix = torch.randn(5, 70, generator=torch.Generator().manual_seed(2))
    nearest = quantize_matrix(matrix, stored, "bfloat16")
    for gram in (torch.eye(70, dtype=torch.float64), torch.zeros(70, 70, dtype=torch.float64)):
        found = round_for_inputs(matrix, gram, stored, "bfloat16")
        assert torch.equal(values(found, stored, 70), values(nearest, stored, 70))


def test_a_smaller_scale_is_taken_where_it_costs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight stands out, on an input that is hardly there."""
    matrix = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    matrix[:, 5] = 6.0
    gram = torch.eye(32, dtype=torch.float64)
    gram[5, 5] = 1e-3
    stored = Quantization(bits=4)
    found = round_for_inputs(matrix, gram, stored, "float32")
    monkeypatch.setattr(gptq, "SHARES", (1.0,))
    widest = round_for_inputs(matrix, gram, stored, "float32")
    assert bool((found[1].abs() < widest[1].abs()).all())
