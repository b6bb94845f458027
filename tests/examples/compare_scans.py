"""Compare the training scan with plain torch in float64: outputs, final state, every gradient.

A script, as Triton reads `TRITON_INTERPRET` when it is imported:

    PYTHONPATH=.:examples/train python tests/examples/compare_scans.py cuda 2 33 5 4

The numbers are rows, tokens, width and states.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from differentiable_scan import differentiable_scan

from longspan.kernels.selective_scan.reference import selective_scan

TOLERANCE = 2e-5  # of the largest value: float32 sums over up to ROWS * TOKENS terms
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")


def run(
    scan: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    inputs: list[torch.Tensor],
    state: torch.Tensor,
    weight: torch.Tensor,
) -> list[torch.Tensor]:
    """y, the final state, and the gradients of sum(weight * y)."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    x, dt, A, B, C, D, z, dt_bias = leaves
    y, last = scan(x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, state=state)
    torch.autograd.backward((y * weight).sum())
    return [y, last, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def main() -> None:
    """Draw inputs, with steps from 1e-6 to 5 as memory needs them, and compare."""
    device, *shape = sys.argv[1:]
    rows, length, width, states = map(int, shape)
    torch.manual_seed(0)
    inputs = [
        torch.randn(rows, length, width),
        2 * torch.randn(rows, length, width) - 2,
        -torch.exp(torch.randn(width, states)),
        torch.randn(rows, length, states),
        torch.randn(rows, length, states),
        torch.randn(width),
        torch.randn(rows, length, width),
        4 * torch.randn(width) - 5,
    ]
    state, weight = torch.randn(rows, width, states), torch.randn(rows, length, width)
    expected = run(selective_scan, [t.double() for t in inputs], state.double(), weight.double())
    found = run(
        differentiable_scan, [t.to(device) for t in inputs], state.to(device), weight.to(device)
    )
    for name, got, want in zip(("y", "last", *NAMES), found, expected, strict=True):
        error = float((got.detach().cpu().double() - want).abs().max() / want.abs().max())
        if not error < TOLERANCE:
            sys.exit(f"{name} differs by {error:.1e} of its largest value; allowed: {TOLERANCE}.")


if __name__ == "__main__":
    main()
