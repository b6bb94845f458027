"""What stacked heads need of single chunks, and what they leave out: see `triton_stacked.py`."""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from longspan.kernels.ssd.triton_chunks import load_rows, load_steps, steps_and_sums
from longspan.kernels.ssd.triton_math import LOG2_E

# Factors within 2^-60 .. 2^60 leave x, steps and sums of products 2^60 in either direction, and the
# product of two chunks' factors, which the walk multiplies the state by, is above 2^-126.
MIN_LOG2_CHUNK = tl.constexpr(-120.0)


@triton.jit
def half_of(decay):
    """r: log2 of the factor that splits a chunk's decay in two, zero where it cannot be split."""
    return tl.where(decay < MIN_LOG2_CHUNK, 0.0, 0.5 * decay)


@triton.jit(do_not_specialize=["length"])
def chunk_factors(
    dt_ptr,
    A_ptr,
    dt_bias_ptr,
    starts_ptr,
    ends_ptr,
    decays_ptr,
    low,
    high,
    length,
    stride_dt_batch,
    stride_dt,
    stride_dt_head,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Store starts and ends of a chunk in `HEADS` heads [H, CHUNK], and their log2 decays [H]."""
    index = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    token = tl.arange(0, CHUNK)[:, None]
    real = head < H
    start = index * CHUNK
    dt_ptr += batch * stride_dt_batch + start * stride_dt
    left = (length - start).to(tl.int32)
    step, sums = load_steps(
        dt_ptr, A_ptr, dt_bias_ptr, low, high, left, stride_dt, stride_dt_head, head, real, CHUNK
    )
    decay = tl.sum(tl.where(token == CHUNK - 1, sums, 0.0), axis=0)
    half = half_of(decay)[None, :]
    slot = (batch * tl.num_programs(0) + index) * H
    target = (slot + head)[None, :] * CHUNK + token
    tl.store(starts_ptr + target, tl.exp2(sums - half), mask=real[None, :])
    ends = step * tl.exp2(decay[None, :] - sums - half)
    tl.store(ends_ptr + target, ends, mask=real[None, :])
    tl.store(decays_ptr + slot + head, decay, mask=real)


@triton.jit(do_not_specialize=["length"])
def chunk_products(
    B_ptr,
    C_ptr,
    products_ptr,
    length,
    stride_B_batch,
    stride_B,
    stride_B_group,
    stride_C_batch,
    stride_C,
    stride_C_group,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    STATES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Store B_j . C_i of a chunk and group [j, i], zero where j > i, in the dtype of B."""
    index = tl.program_id(0).to(tl.int64)
    group, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n, token = tl.arange(0, STATES), tl.arange(0, CHUNK)
    start = index * CHUNK
    left = (length - start).to(tl.int32)
    B_ptr += batch * stride_B_batch + group * stride_B_group + start * stride_B
    C_ptr += batch * stride_C_batch + group * stride_C_group + start * stride_C
    B = load_rows(B_ptr, stride_B, left, n, N, CHUNK, EVEN)
    C = load_rows(C_ptr, stride_C, left, n, N, CHUNK, EVEN)
    products = tl.where(token[:, None] <= token[None, :], tl.dot(B, C.trans()), 0.0)
    slot = (batch * tl.num_programs(1) + group) * tl.num_programs(0) + index
    target = products_ptr + slot * CHUNK * CHUNK + token[:, None] * CHUNK + token[None, :]
    tl.store(target, products.to(products_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["length"])
def add_within(
    x_ptr,
    dt_ptr,
    A_ptr,
    dt_bias_ptr,
    products_ptr,
    decays_ptr,
    y_ptr,
    low,
    high,
    length,
    stride_x_batch,
    stride_x,
    stride_x_head,
    stride_dt_batch,
    stride_dt,
    stride_dt_head,
    stride_y_batch,
    H: tl.constexpr,
    REPEATS: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Add sum_j 2^(cs_i - cs_j) step_j (B_j . C_i) x_j to y where a decay cannot be split."""
    index = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(0)
    token, p = tl.arange(0, CHUNK), tl.arange(0, P)
    start = index * CHUNK
    left = (length - start).to(tl.int32)
    inside = (token < left)[:, None]
    x_ptr += batch * stride_x_batch + start * stride_x
    dt_ptr += batch * stride_dt_batch + start * stride_dt
    y_ptr += batch * stride_y_batch + start * (H * P)
    decays_ptr += (batch * chunks + index) * H
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    decays = tl.load(decays_ptr + heads, mask=heads < H, other=0.0)
    if tl.min(decays, axis=0) < MIN_LOG2_CHUNK:
        for k in range(HEADS):
            head = (tl.program_id(1) * HEADS + k).to(tl.int64)
            if tl.load(decays_ptr + head, mask=head < H, other=0.0) < MIN_LOG2_CHUNK:
                A = tl.load(A_ptr + head).to(tl.float32) * LOG2_E
                source = dt_ptr + head * stride_dt_head + token * stride_dt
                dt = tl.load(source, mask=token < left, other=0.0).to(tl.float32)
                if dt_bias_ptr is not None:
                    dt += tl.load(dt_bias_ptr + head).to(tl.float32)
                steps, sums = steps_and_sums(dt, A, token < left, low, high)
                slot = (batch * (H // REPEATS) + head // REPEATS) * chunks + index
                block = products_ptr + slot * CHUNK * CHUNK
                products = tl.load(block + token[None, :] * CHUNK + token[:, None]).to(tl.float32)
                # Masked before the exponential: beyond the diagonal it would overflow.
                seen = token[:, None] >= token[None, :]
                fade = tl.where(seen, sums[:, None] - sums[None, :], float("-inf"))
                weights = products * tl.exp2(fade) * steps[None, :]
                x_rows = x_ptr + head * stride_x_head + token[:, None] * stride_x + p[None, :]
                x = tl.load(x_rows, mask=inside, other=0.0)
                y_rows = y_ptr + head * P + token[:, None] * (H * P) + p[None, :]
                y = tl.load(y_rows, mask=inside, other=0.0).to(tl.float32)
                y = tl.dot(weights.to(x.dtype), x, acc=y)
                tl.store(y_rows, y.to(y_ptr.dtype.element_ty), mask=inside)
