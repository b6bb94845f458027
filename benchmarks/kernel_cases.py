"""The kernels at the sizes of published models: inputs, what computes them, and their floors.

    case = CASES["ssd"]
    inputs = case.inputs(Draw(device="cuda", dtype=torch.bfloat16), 65_536)
    y, *state = case.call(inputs)

A floor counts each input read once and the output written once, and the operations of matrix
products that the result cannot do without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from longspan.kernels.anchor_attention import anchor_attention
from longspan.kernels.anchor_attention.reference import anchor_attention as anchor_reference
from longspan.kernels.attention import window_attention
from longspan.kernels.attention.reference import window_attention as window_reference
from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.causal_conv.reference import causal_conv as conv_reference
from longspan.kernels.full_attention import full_attention
from longspan.kernels.full_attention.reference import full_attention as full_reference
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.rms_norm.reference import rms_norm as norm_reference
from longspan.kernels.selective_scan import selective_scan
from longspan.kernels.selective_scan.reference import selective_scan as scan_reference
from longspan.kernels.ssd import ssd
from longspan.kernels.ssd.reference import ssd as ssd_reference

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


def ssd_case(op: str, *, heads: int, width: int, states: int) -> Case:
    """A state-space dual of one group; x, B and C are views of one tensor, as a mixer's are."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        sizes = [heads * width, states, states]
        x, B, C = draw.normal(1, tokens, sum(sizes)).split(sizes, dim=-1)
        return {
            "x": x.unflatten(-1, (heads, width)),
            "dt": draw.normal(1, tokens, heads),
            "A": -draw.between(1, 16, heads),
            "B": B.unflatten(-1, (1, states)),
            "C": C.unflatten(-1, (1, states)),
            "D": draw.parameters(heads),
            "dt_bias": draw.between(-7, 0, heads),
            "dt_limit": (0.0, math.inf),
            "state": torch.zeros(1, heads, states, width, device=draw.device),
        }

    return Case(
        op=op,
        what=f"SSD (Mamba-2), {heads} heads of {width}, N = {states}, one group",
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
            "dt_bias": draw.between(-7, 0, width),
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


def causal_pairs(tokens: int, window: int | None = None) -> int:
    """Pairs of a token and one that it sees: all before and itself, at most `window`."""
    short = tokens if window is None else min(tokens, window)
    return short * (short + 1) // 2 + (tokens - short) * short


def window_case(op: str, *, heads: int, kv_heads: int, width: int, window: int) -> Case:
    """Window attention over a text from its start."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        past = (1, window - 1, kv_heads, width)
        return {
            "q": draw.normal(1, tokens, heads, width),
            "k": draw.normal(1, tokens, kv_heads, width),
            "v": draw.normal(1, tokens, kv_heads, width),
            "past_k": torch.zeros(past, dtype=draw.dtype, device=draw.device),
            "past_v": torch.zeros(past, dtype=draw.dtype, device=draw.device),
            "position": torch.zeros(1, dtype=torch.int64, device=draw.device),
            "window": window,
        }

    return Case(
        op=op,
        what=f"window attention, window {window:,}, {heads} heads of {width}, {kv_heads} of keys",
        inputs=inputs,
        call=named(window_attention),
        reference=named(window_reference),
        bytes_moved=lambda n, size: n * size * 2 * (heads + kv_heads) * width,
        flops=lambda n: 4 * heads * width * causal_pairs(n, window),
        error_tokens=window + 1024,
    )


def seen_through_anchors(tokens: int, every: int) -> int:
    """Pairs of a token and one that it sees, with an anchor after each `every` tokens.

    A token sees its segment up to itself and the anchors before; an anchor its segment alone.
    """
    segments, left = divmod(tokens, every)
    within = segments * every * (every + 1) // 2 + left * (left + 1) // 2
    before = (every - 1) * segments * (segments - 1) // 2 + left * segments
    return within + before


def anchor_case(op: str, *, heads: int, width: int, every: int) -> Case:
    """Attention through anchors, from an empty cache."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        capacity = tokens // every + every
        shape = (1, tokens, heads, width)
        past = torch.zeros(1, capacity, heads, width, dtype=draw.dtype, device=draw.device)
        none = torch.zeros(1, dtype=torch.int64, device=draw.device)
        position = torch.arange(1, tokens + 1, device=draw.device)
        return {
            **{name: draw.normal(*shape) for name in ("q", "k", "v")},
            "past_k": past,
            "past_v": past.clone(),
            "anchors": none,
            "entries": none.clone(),
            "is_anchor": position % every == 0,
        }

    def compared(outputs: Outputs) -> Outputs:
        y, k, v, _, entries = outputs
        return y, k[:, : int(entries)], v[:, : int(entries)]

    return Case(
        op=op,
        what=f"anchor attention, an anchor every {every} tokens, {heads} heads of {width}",
        inputs=inputs,
        call=named(anchor_attention),
        reference=named(anchor_reference),
        bytes_moved=lambda n, size: n * size * 4 * heads * width,
        flops=lambda n: 4 * heads * width * seen_through_anchors(n, every),
        compared=compared,
        error_tokens=3000,
    )


def full_case(op: str, *, heads: int, kv_heads: int, width: int) -> Case:
    """Full causal attention over a text from its start."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        cache = (1, tokens, kv_heads, width)
        return {
            "q": draw.normal(1, tokens, heads, width),
            "k": draw.normal(*cache),
            "v": draw.normal(*cache),
            "past_k": torch.zeros(cache, dtype=draw.dtype, device=draw.device),
            "past_v": torch.zeros(cache, dtype=draw.dtype, device=draw.device),
            "position": torch.zeros(1, dtype=torch.int64, device=draw.device),
        }

    return Case(
        op=op,
        what=f"full attention, {heads} heads of {width}, {kv_heads} of keys",
        inputs=inputs,
        call=named(full_attention),
        reference=named(full_reference),
        bytes_moved=lambda n, size: n * size * 2 * (heads + kv_heads) * width,
        flops=lambda n: 4 * heads * width * causal_pairs(n),
        error_tokens=2048,
    )


def full_step_case(op: str, *, heads: int, kv_heads: int, width: int) -> Case:
    """One token after a text: tokens are those in the caches, which have room for one more."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        cache, new = (1, tokens + 1, kv_heads, width), (1, 1, kv_heads, width)
        return {
            "q": draw.normal(1, 1, heads, width),
            "k": draw.normal(*new),
            "v": draw.normal(*new),
            "past_k": draw.normal(*cache),
            "past_v": draw.normal(*cache),
            "position": torch.tensor([tokens], device=draw.device),
        }

    return Case(
        op=op,
        what=f"full attention, one token more, {heads} heads of {width}, {kv_heads} of keys",
        inputs=inputs,
        call=named(full_attention),
        reference=named(full_reference),
        bytes_moved=lambda n, size: n * size * 2 * kv_heads * width,
        flops=lambda n: 4 * heads * width * n,
        error_tokens=2048,
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
        return (norm_reference(**{**inputs, "dtype": torch.float64}),)

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
        scan_case("selective_scan", width=5120, states=16),
        ssd_case("mamba2_against_mamba1", heads=80, width=64, states=64),
        window_case("window_attention", heads=32, kv_heads=32, width=64, window=2048),
        anchor_case("anchor_attention", heads=32, width=128, every=128),
        full_case("full_attention", heads=32, kv_heads=8, width=128),
        full_step_case("full_attention_step", heads=32, kv_heads=8, width=128),
        conv_case("conv", width=5376),
        norm_case("norm", width=2560),
    )
}
