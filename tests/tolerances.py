"""The one table of tolerances: by op and dtype of the result, each with its reason.

    assert_close("rms_norm", y, expected)   # the row is found by the dtype of y

Expected values come from the reference in float64, from the same (already rounded) inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """|found - expected| may be ``absolute + relative |expected|``."""

    relative: float
    absolute: float
    reason: str


_F32, _F16, _BF16 = torch.float32, torch.float16, torch.bfloat16

TOLERANCES: dict[tuple[str, torch.dtype], Tolerance] = {
    ("rms_norm", _F32): Tolerance(
        relative=2e-6, absolute=1e-6, reason="one sum of squares and one approximate root"
    ),
    ("rms_norm", _F16): Tolerance(
        relative=1e-3, absolute=1e-6, reason="the result is rounded once, to 2^-11"
    ),
    ("rms_norm", _BF16): Tolerance(
        relative=5e-3, absolute=1e-6, reason="the result is rounded once, to 2^-8"
    ),
    ("add_norm", _F32): Tolerance(
        relative=2e-6, absolute=2e-6, reason="as rms_norm, and a mean that is taken off"
    ),
    ("add_norm", _F16): Tolerance(
        relative=1e-3, absolute=2e-6, reason="the result is rounded once, to 2^-11"
    ),
    ("add_norm", _BF16): Tolerance(
        relative=5e-3, absolute=2e-6, reason="the result is rounded once, to 2^-8"
    ),
    ("linear", _F32): Tolerance(
        relative=2e-6, absolute=5e-6, reason="sums of up to 5,120 terms in float32"
    ),
    ("linear", _F16): Tolerance(
        relative=1e-3, absolute=1e-5, reason="summed in float32, rounded once, to 2^-11"
    ),
    ("linear", _BF16): Tolerance(
        relative=5e-3, absolute=1e-5, reason="summed in float32, rounded once, to 2^-8"
    ),
    ("linear_conv", _F32): Tolerance(
        relative=1e-5, absolute=2e-5, reason="as linear and causal_conv, one of the other"
    ),
    ("linear_conv", _F16): Tolerance(
        relative=2e-3, absolute=3e-3, reason="the product and the result: 2^-11 each"
    ),
    ("linear_conv", _BF16): Tolerance(
        relative=1e-2, absolute=2e-2, reason="the product and the result: 2^-8 each"
    ),
    ("ssd_norm_linear", _F32): Tolerance(
        relative=1e-4, absolute=2e-5, reason="as ssd, rms_norm and linear, of each other"
    ),
    ("ssd_norm_linear", _F16): Tolerance(
        relative=2e-3, absolute=2e-3, reason="y, the norm and the result: 2^-11 each"
    ),
    ("ssd_norm_linear", _BF16): Tolerance(
        relative=1e-2, absolute=1.5e-2, reason="y, the norm and the result: 2^-8 each"
    ),
    ("dequantize", _F32): Tolerance(
        relative=2e-7, absolute=0.0, reason="one product of a whole number and a scale"
    ),
    ("dequantize", _F16): Tolerance(
        relative=1e-3, absolute=1e-7, reason="the product is rounded once, to 2^-11"
    ),
    ("dequantize", _BF16): Tolerance(
        relative=5e-3, absolute=1e-7, reason="the product is rounded once, to 2^-8"
    ),
    ("quantized_linear", _F32): Tolerance(
        relative=2e-6, absolute=5e-6, reason="sums of up to 5,120 terms in float32"
    ),
    ("quantized_linear", _F16): Tolerance(
        relative=1e-3, absolute=1e-5, reason="summed in float32, rounded once, to 2^-11"
    ),
    ("quantized_linear", _BF16): Tolerance(
        relative=5e-3, absolute=1e-5, reason="summed in float32, rounded once, to 2^-8"
    ),
    ("quantized_linear of scratch", _F32): Tolerance(
        relative=2e-6, absolute=5e-6, reason="sums of up to 144 terms in float32"
    ),
    ("quantized_linear of scratch", _F16): Tolerance(
        relative=2e-3, absolute=2e-3, reason="the weights are rounded to 2^-11 for the product"
    ),
    ("quantized_linear of scratch", _BF16): Tolerance(
        relative=1e-2, absolute=1e-2, reason="the weights are rounded to 2^-8 for the product"
    ),
    ("quantized_linear of a large mean", _F32): Tolerance(
        relative=1e-5, absolute=2e-4, reason="sums of 512 terms of up to 50, which cancel"
    ),
    ("rope", _F32): Tolerance(
        relative=2e-6, absolute=2e-6, reason="two products, where terms may cancel; angles to 2^-23"
    ),
    ("rope", _F16): Tolerance(
        relative=1e-3, absolute=2e-6, reason="the result is rounded once, to 2^-11"
    ),
    ("rope", _BF16): Tolerance(
        relative=5e-3, absolute=2e-6, reason="the result is rounded once, to 2^-8"
    ),
    ("swiglu", _F32): Tolerance(
        relative=2e-6, absolute=1e-6, reason="one exponential and one quotient"
    ),
    ("swiglu", _F16): Tolerance(
        relative=1e-3, absolute=1e-6, reason="the result is rounded once, to 2^-11"
    ),
    ("swiglu", _BF16): Tolerance(
        relative=5e-3, absolute=1e-6, reason="the result is rounded once, to 2^-8"
    ),
    ("causal_conv", _F32): Tolerance(
        relative=5e-6, absolute=5e-6, reason="K products, where terms may cancel"
    ),
    ("causal_conv", _F16): Tolerance(
        relative=1e-3, absolute=1e-5, reason="summed in float32, rounded once, to 2^-11"
    ),
    ("causal_conv", _BF16): Tolerance(
        relative=5e-3, absolute=1e-5, reason="summed in float32, rounded once, to 2^-8"
    ),
    ("selective_scan", _F32): Tolerance(
        relative=1e-4,
        absolute=1e-4,
        reason="the error of exp2, 2^-22, is multiplied in at each of 1,000 tokens",
    ),
    ("selective_scan", _F16): Tolerance(
        relative=2e-3, absolute=5e-4, reason="as float32, then rounded to 2^-11"
    ),
    ("selective_scan", _BF16): Tolerance(
        relative=8e-3, absolute=5e-4, reason="as float32, then rounded to 2^-8"
    ),
    ("ssd", _F32): Tolerance(
        relative=1e-4,
        absolute=2e-4,
        reason="the error of the decays, 2^-22 a token, in sums of 128 x N terms that may cancel",
    ),
    ("ssd", _F16): Tolerance(
        relative=2e-3, absolute=1e-3, reason="as float32, then rounded to 2^-11"
    ),
    ("ssd", _BF16): Tolerance(
        relative=1e-2,
        absolute=1e-1,
        reason="weighted inputs, products of B and C and the state are rounded to 2^-9, in sums of "
        "64 and of N terms; B . C reaches 50 and its products with x hundreds",
    ),
    ("ssd state of bfloat16", _F32): Tolerance(
        relative=1e-2,
        absolute=1e-2,
        reason="every term of its sums is rounded to bfloat16, 2^-9, as in the papers' kernels",
    ),
    ("conba", _F32): Tolerance(
        relative=1e-4,
        absolute=1e-4,
        reason="sums of N and P terms, fed back through the gain at each of 1,000 tokens",
    ),
    ("conba", _F16): Tolerance(
        relative=2e-3, absolute=5e-4, reason="as float32, then rounded to 2^-11"
    ),
    ("conba", _BF16): Tolerance(
        relative=8e-3, absolute=5e-4, reason="as float32, then rounded to 2^-8"
    ),
    ("moe", _F32): Tolerance(
        relative=1e-5, absolute=1e-5, reason="sums of D and of F terms, in another order"
    ),
    ("moe", _F16): Tolerance(
        relative=4e-3, absolute=2e-3, reason="the inner activations are rounded to 2^-11, too"
    ),
    ("moe", _BF16): Tolerance(
        relative=3e-2, absolute=2e-2, reason="the inner activations are rounded to 2^-8, too"
    ),
    ("gla", _F32): Tolerance(
        relative=1e-4,
        absolute=2e-4,
        reason="the error of exp2, 2^-22 a token, in sums of 64 x K terms that may cancel",
    ),
    ("gla of bfloat16", _F32): Tolerance(
        relative=5e-4,
        absolute=5e-4,
        reason="products take both sides as two bfloat16 values, 2^-16 together",
    ),
    ("window_attention", _F32): Tolerance(
        relative=1e-5, absolute=5e-6, reason="sums over the window, in another order"
    ),
    ("window_attention", _F16): Tolerance(
        relative=2e-3, absolute=2e-3, reason="the weights are rounded to 2^-11 for the product"
    ),
    ("window_attention", _BF16): Tolerance(
        relative=1e-2, absolute=1e-2, reason="the weights are rounded to 2^-8 for the product"
    ),
    ("full_attention", _F32): Tolerance(
        relative=1e-5, absolute=5e-6, reason="sums over all keys, in another order"
    ),
    ("full_attention", _F16): Tolerance(
        relative=2e-3, absolute=2e-3, reason="the weights are rounded to 2^-11 for the product"
    ),
    ("full_attention", _BF16): Tolerance(
        relative=1e-2, absolute=1e-2, reason="the weights are rounded to 2^-8 for the product"
    ),
    ("anchor_attention", _F32): Tolerance(
        relative=1e-5, absolute=5e-6, reason="sums over anchors and a segment, in another order"
    ),
    ("anchor_attention", _F16): Tolerance(
        relative=2e-3, absolute=2e-3, reason="the weights are rounded to 2^-11 for the product"
    ),
    ("anchor_attention", _BF16): Tolerance(
        relative=1e-2, absolute=1e-2, reason="the weights are rounded to 2^-8 for the product"
    ),
    ("anchor_attention", torch.float64): Tolerance(
        relative=1e-12, absolute=1e-12, reason="masked or dropped, the same sums in another order"
    ),
    ("decoder", _F32): Tolerance(
        relative=1e-3, absolute=5e-4, reason="a few layers of the above; logits are near 4"
    ),
    ("onnx selective_scan", _F32): Tolerance(
        relative=1e-4, absolute=1e-5, reason="ONNX Runtime's own exp, over 63 tokens and a state"
    ),
    ("onnx selective_scan", _F16): Tolerance(
        relative=2e-2, absolute=2e-2, reason="the log decay too is rounded to 2^-11"
    ),
    ("onnx ssd", _F32): Tolerance(
        relative=1e-4, absolute=1e-5, reason="ONNX Runtime's own exp, over 63 tokens and a state"
    ),
    ("onnx ssd", _F16): Tolerance(
        relative=2e-2, absolute=2e-2, reason="the step too is rounded to 2^-11"
    ),
    ("onnx conba", _F32): Tolerance(
        relative=1e-4, absolute=1e-5, reason="sums in another order, fed back over 63 tokens"
    ),
    ("onnx conba", _F16): Tolerance(
        relative=1e-2, absolute=1e-2, reason="the result is rounded; D u and r are not"
    ),
    ("onnx gla", _F32): Tolerance(
        relative=1e-4, absolute=1e-5, reason="ONNX Runtime's own exp, over 63 tokens and a state"
    ),
    ("onnx", _F32): Tolerance(
        relative=1e-5, absolute=5e-6, reason="the same arithmetic, in another order"
    ),
    ("onnx", _F16): Tolerance(
        relative=1e-2, absolute=1e-2, reason="every step, not only the result, is in float16"
    ),
}


def assert_close(op: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare in float64 with the tolerance of the op and the dtype of `found`."""
    row = TOLERANCES[op, found.dtype]
    torch.testing.assert_close(
        found.double().cpu(), expected.double().cpu(), rtol=row.relative, atol=row.absolute
    )
