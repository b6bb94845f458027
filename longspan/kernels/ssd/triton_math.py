"""What the kernels of the state-space dual share: a step, and a product of two dtypes."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def softplus_step(dt, low, high):
    """softplus(dt), exact also where exp(dt) is far below one, between `low` and `high`."""
    # Not minimum and maximum, here and below: they would make a number of a NaN.
    u = tl.exp(tl.where(dt > 20.0, 20.0, dt))
    w = 1.0 + u
    # log(w) u / (w - 1) undoes the rounding of 1 + u: log1p, which the interpreter lacks.
    log1p = tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
    step = tl.where(dt > 20.0, dt, log1p)
    return tl.where(step < low, low, tl.where(step > high, high, step))


@triton.jit
def dot_rounded(left, right, total, PRECISION: tl.constexpr):
    """`total` + left @ right, where one is float32 and the other has the dtype of the inputs.

    Tensor cores take two matrices of one dtype. bfloat16 has float32's range, so the float32 one is
    rounded to it; float16, whose range would not do, is widened instead.
    """
    if left.dtype == tl.bfloat16 or right.dtype == tl.bfloat16:
        total = tl.dot(left.to(tl.bfloat16), right.to(tl.bfloat16), acc=total)
    else:
        left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, acc=total, input_precision=PRECISION)
    return total
