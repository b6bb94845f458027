"""The kernels at the sizes of published models.

case = CASES["ssd"]
inputs = case.inputs(Draw(device="cuda", dtype=torch.bfloat16), 65_536)
y, *state = case.call(inputs)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from attention_cases import anchor_case, full_case, full_step_case, window_case
from fused_cases import add_norm_case, gated_norm_case, swiglu_case
from kernel_case import Case, Draw, Inputs, Outputs, named

from longspan.kernels import override
from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.causal_conv.reference import causal_conv as conv_reference
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.selective_scan import selective_scan
from longspan.kernels.selective_scan.reference import selective_scan as scan_reference
from longspan.kernels.ssd import ssd
from longspan.kernels.ssd.reference import ssd as ssd_reference

# Before softplus: steps of 0.001 to 0.1, as Mamba-2 begins, and up to 0.7, of heads that forget all
# within a few tokens.
STEPS, LARGE_STEPS = (-6.9, -2.25), (-7.0, 0.0)


def ssd_case(
    op: str, *, heads: int, width: int, states: int, steps: tuple[float, float] = STEPS
) -> Case:
    """A state-space dual of one group; x, B and C are views of one tensor, as a mixer's are."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        sizes = [heads * width, states, states]
        x, B, C = torch.split(draw.normal(1, tokens, sum(sizes)), sizes, dim=-1)
        return {
            "x": x.view(1, tokens, heads, width),
            "dt": draw.normal(1, tokens, heads),
            "A": -draw.between(1, 16, heads),
            "B": B[:, :, None],
            "C": C[:, :, None],
            "D": draw.parameters(heads),
            "dt_bias": draw.between(*steps, heads),
            "dt_limit": (0.0, math.inf),
            "state": torch.zeros(1, heads, states, width, device=draw.device),
        }

    return Case(
        op=op,
        what=f"SSD (Mamba-2), {heads} heads of {width}, N = {states}, one group, steps about "
        f"{math.log1p(math.exp(steps[0])):.3f} to {math.log1p(math.exp(steps[1])):.1f}",
        inputs=inputs,
        call=named(ssd),
        reference=named(ssd_reference),
        bytes_moved=lambda n, size: n * size * (2 * heads * width + 2 * states + heads),
        # B x^T and C h of each token and head.
        flops=lambda n: 4 * n * heads * states * width,
    )


def scan_case(op: str, *, width: int, states: int) -> Case:
    """A selective scan with its gate."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        return {
            "x": draw.normal(1, tokens, width),
            "dt": draw.normal(1, tokens, width),
            "A": -draw.between(1, states, states).repeat(width, 1),
            "B": draw.normal(1, tokens, states),
            "C": draw.normal(1, tokens, states),
            "D": draw.parameters(width),
            "z": draw.normal(1, tokens, width),
            "dt_bias": draw.between(*STEPS, width),
            "state": torch.zeros(1, width, states, device=draw.device),
        }

    return Case(
        op=op,
        what=f"selective scan (Mamba-1), {width:,} channels, N = {states}, gate",
        inputs=inputs,
        call=named(selective_scan),
        reference=named(scan_reference),
        bytes_moved=lambda n, size: n * size * (4 * width + 2 * states),
        flops=lambda n: 0,
    )


def conv_case(op: str, *, width: int) -> Case:
    """A causal convolution of four taps with SiLU."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        return {
            "x": draw.normal(1, tokens, width),
            "weight": draw.normal(width, 1, 4),
            "bias": draw.normal(width),
            "tail": torch.zeros(1, 3, width, dtype=draw.dtype, device=draw.device),
            "activation": "silu",
        }

    return Case(
        op=op,
        what=f"causal convolution, {width:,} channels, 4 taps, SiLU",
        inputs=inputs,
        call=named(causal_conv),
        reference=named(conv_reference),
        bytes_moved=lambda n, size: 2 * n * size * width,
        flops=lambda n: 0,
    )


def norm_case(op: str, *, width: int) -> Case:
    """RMSNorm of a float32 residual, rounded for the layer after it."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        return {
            "x": draw.parameters(1, tokens, width),
            "weight": draw.normal(width),
            "eps": 1e-5,
            "dtype": draw.dtype,
        }

    def reference(inputs: Inputs) -> Outputs:
        with override("rms_norm", "reference"):
            return (rms_norm(**{**inputs, "dtype": torch.float64}),)

    return Case(
        op=op,
        what=f"RMSNorm of a float32 residual, {width:,} channels",
        inputs=inputs,
        call=named(rms_norm),
        reference=reference,
        bytes_moved=lambda n, size: n * (4 + size) * width,
        flops=lambda n: 0,
    )


CASES: Mapping[str, Case] = {
    case.op: case
    for case in (
        ssd_case("ssd", heads=80, width=64, states=128),
        ssd_case("ssd_large_steps", heads=80, width=64, states=128, steps=LARGE_STEPS),
        scan_case("selective_scan", width=5120, states=16),
        ssd_case("mamba2_against_mamba1", heads=80, width=64, states=64),
        window_case("window_attention", heads=32, kv_heads=32, width=64, window=2048),
        anchor_case("anchor_attention", heads=32, width=128, every=128),
        full_case("full_attention", heads=32, kv_heads=8, width=128),
        full_step_case("full_attention_step", heads=32, kv_heads=8, width=128),
        conv_case("conv", width=5376),
        norm_case("norm", width=2560),
        add_norm_case("add_norm", width=2560),
        gated_norm_case("gated_norm", width=5120),
        swiglu_case("swiglu", width=8196),
    )
}
