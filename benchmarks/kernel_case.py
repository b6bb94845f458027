"""What a case of the kernels' benchmark is: drawn inputs, what computes them, and their floor.

A floor counts each input read once and the output written once, and the operations of matrix
products that the result cannot do without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Inputs = dict[str, Any]
Outputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Random tensors on a device, fresh for each call."""

    device: str
    dtype: torch.dtype

    def normal(self, *shape: int) -> torch.Tensor:
        """Activations, in the dtype, drawn where they lie."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def parameters(self, *shape: int) -> torch.Tensor:
        """Weights in float32."""
        return torch.randn(shape, device=self.device)

    def between(self, first: float, last: float, count: int) -> torch.Tensor:
        """`count` numbers in equal steps, float32."""
        return torch.linspace(first, last, count, device=self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kernel at one size.

    Attributes:
        op: name on the command line.
        what: the size in words.
        inputs: drawn for so many tokens.
        call: the public function; the output, then the state after the last token.
        reference: the same in float64, from widened inputs.
        bytes_moved: of so many tokens and so many bytes a number.
        flops: of the matrix products of so many tokens.
        compared: what of a result has a meaning: the output, and the state in its parts.
        error_tokens: how many are compared with the reference.
    """

    op: str
    what: str
    inputs: Callable[[Draw, int], Inputs]
    call: Callable[[Inputs], Outputs]
    reference: Callable[[Inputs], Outputs]
    bytes_moved: Callable[[int, int], int]
    flops: Callable[[int], int]
    compared: Callable[[Outputs], Outputs] = tuple
    error_tokens: int = 1000


def widened(inputs: Inputs) -> Inputs:
    """Floating-point tensors in float64."""
    return {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def named(op: Callable[..., Any]) -> Callable[[Inputs], Outputs]:
    """The op called by name, its result as a tuple."""

    def call(inputs: Inputs) -> Outputs:
        result = op(**inputs)
        return result if isinstance(result, tuple) else (result,)

    return call
