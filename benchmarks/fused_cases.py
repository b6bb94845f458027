"""What stands around the matrix products, a launch each, at the sizes of published models."""

from __future__ import annotations

import torch
from kernel_case import Case, Draw, Inputs, Outputs, named

from longspan.kernels import override
from longspan.kernels.add_norm import add_norm
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.swiglu import swiglu
from longspan.kernels.swiglu.reference import swiglu as swiglu_reference


def add_norm_case(op: str, *, width: int) -> Case:
    """A float32 residual, what is added to it, and the sum's norm for the layer after it."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        return {
            "x": draw.parameters(1, tokens, width),
            "y": draw.normal(1, tokens, width),
            "weight": draw.normal(width),
            "kind": "rms",
            "eps": 1e-5,
            "dtype": draw.dtype,
        }

    def reference(inputs: Inputs) -> Outputs:
        with override("add_norm", "reference"):
            return add_norm(**{**inputs, "dtype": torch.float64})

    return Case(
        op=op,
        what=f"a float32 residual, its sum and RMSNorm, {width:,} channels",
        inputs=inputs,
        call=named(add_norm),
        reference=reference,
        compared=norm_first,
        # The sum is read and written, what is added read, the norm written.
        bytes_moved=lambda n, size: n * (8 + 2 * size) * width,
        flops=lambda n: 0,
    )


def norm_first(outputs: Outputs) -> Outputs:
    """The norm, then the sum."""
    total, normed = outputs
    return normed, total


def gated_norm_case(op: str, *, width: int) -> Case:
    """Mamba-2's norm: gated first, one group; the gate is a view of the projection."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        return {
            "x": draw.normal(1, tokens, width),
            "gate": draw.normal(1, tokens, 2 * width)[..., :width],
            "weight": draw.normal(width),
            "gate_first": True,
            "eps": 1e-5,
            "dtype": draw.dtype,
        }

    def reference(inputs: Inputs) -> Outputs:
        with override("rms_norm", "reference"):
            return (rms_norm(**{**inputs, "dtype": torch.float64}),)

    return Case(
        op=op,
        what=f"RMSNorm of x silu(gate), {width:,} channels",
        inputs=inputs,
        call=named(rms_norm),
        reference=reference,
        bytes_moved=lambda n, size: 3 * n * size * width,
        flops=lambda n: 0,
    )


def swiglu_case(op: str, *, width: int) -> Case:
    """The product inside an MLP; both sides are views of one projection."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        gate, x = torch.split(draw.normal(1, tokens, 2 * width), width, dim=-1)
        return {"gate": gate, "x": x}

    return Case(
        op=op,
        what=f"silu(gate) x, {width:,} channels",
        inputs=inputs,
        call=named(swiglu),
        reference=named(swiglu_reference),
        bytes_moved=lambda n, size: 3 * n * size * width,
        flops=lambda n: 0,
    )
