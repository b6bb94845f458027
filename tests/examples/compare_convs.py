"""Compare the training convolution with plain torch in float64: outputs and every gradient.

A script, as Triton reads `TRITON_INTERPRET` when it is imported:

    PYTHONPATH=.:examples/train python tests/examples/compare_convs.py cuda 2 33 5 4

The numbers are rows, tokens, channels and taps.
"""

from __future__ import annotations

import sys

import torch
from differentiable_conv import differentiable_conv

from longspan.kernels.causal_conv.reference import causal_conv

TOLERANCE = 1e-5  # of the largest value: float32 sums over up to ROWS * TOKENS terms


def main() -> None:
    """Draw inputs and compare."""
    device, *shape = sys.argv[1:]
    rows, length, width, taps = map(int, shape)
    torch.manual_seed(0)
    inputs = torch.randn(rows, length + taps - 1, width)
    weight, bias = torch.randn(width, 1, taps), torch.randn(width)
    given = torch.randn(rows, length, width)

    exact = [tensor.double().requires_grad_() for tensor in (inputs, weight, bias)]
    want, _ = causal_conv(
        exact[0][:, taps - 1 :], exact[1], exact[2], exact[0][:, : taps - 1].detach(),
        activation="silu",
    )  # fmt: skip
    torch.autograd.backward((want * given).sum())
    found = [tensor.to(device).requires_grad_() for tensor in (inputs, weight, bias)]
    y = differentiable_conv(*found)
    torch.autograd.backward((y * given.to(device)).sum())

    pairs = [(y.detach(), want.detach())]
    pairs += [(mine.grad, theirs.grad) for mine, theirs in zip(found, exact, strict=True)]
    for name, (got, expected) in zip(("y", "inputs", "weight", "bias"), pairs, strict=True):
        error = float((got.cpu().double() - expected).abs().max() / expected.abs().max())
        if not error < TOLERANCE:
            sys.exit(f"{name} differs by {error:.1e} of its largest value; allowed: {TOLERANCE}.")


if __name__ == "__main__":
    main()
