"""The kernels of the chunked state-space dual, in the order of their launches.

With cs_i the sum of step A over a chunk's tokens up to i, and h the state before the chunk:

    chunk_sums    step_i and cs_i
    chunk_states  S = sum_j exp(cs_last - cs_j) step_j B_j x_j^T
    walk_chunks   h of the next chunk = exp(cs_last) h + S
    scan_chunks   y_i = sum_{j <= i} C_i . B_j exp(cs_i - cs_j) step_j x_j + exp(cs_i) C_i h + D x_i
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from longspan.kernels.ssd.triton_math import LOG2_E, dot_split, softplus_step

# 2^-150 is zero in float32; without a floor one such token would cost cs the digits of the others.
MIN_LOG2_DECAY = tl.constexpr(-150.0)


@triton.jit(do_not_specialize=["length"])
def chunk_sums(
    dt_ptr,
    A_ptr,
    dt_bias_ptr,
    steps_ptr,
    sums_ptr,
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
    """Store the steps of a chunk, in `HEADS` heads, and their sums of log2 decays."""
    index = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    token = tl.arange(0, CHUNK)
    t = index * CHUNK + token
    real = head < H

    A = tl.load(A_ptr + head, mask=real, other=0.0).to(tl.float32) * LOG2_E
    offsets = t[:, None] * stride_dt + head[None, :] * stride_dt_head
    mask = (t < length)[:, None] & real[None, :]
    dt = tl.load(dt_ptr + batch * stride_dt_batch + offsets, mask=mask, other=0.0).to(tl.float32)
    if dt_bias_ptr is not None:
        dt += tl.load(dt_bias_ptr + head, mask=real, other=0.0).to(tl.float32)[None, :]
    step = tl.where(mask, softplus_step(dt, low, high), 0.0)
    sums = tl.cumsum(tl.maximum(step * A[None, :], MIN_LOG2_DECAY), axis=0)

    target = (batch * tl.num_programs(0) + index) * H * CHUNK
    target += head[None, :] * CHUNK + token[:, None]
    tl.store(steps_ptr + target, step, mask=real[None, :])
    tl.store(sums_ptr + target, sums, mask=real[None, :])


@triton.jit(do_not_specialize=["length"])
def chunk_states(
    x_ptr,
    B_ptr,
    steps_ptr,
    sums_ptr,
    states_ptr,
    length,
    chunks,
    stride_x_batch,
    stride_x,
    stride_x_head,
    stride_B_batch,
    stride_B,
    stride_B_group,
    H: tl.constexpr,
    REPEATS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store a block [STATES, WIDTH] of a chunk's own state, from a zero state."""
    WIDTHS: tl.constexpr = (P + WIDTH - 1) // WIDTH
    BLOCKS: tl.constexpr = (N + STATES - 1) // STATES * WIDTHS
    block = tl.program_id(0) % BLOCKS
    index = (tl.program_id(0) // BLOCKS).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    n = block // WIDTHS * STATES + tl.arange(0, STATES)
    p = block % WIDTHS * WIDTH + tl.arange(0, WIDTH)
    slot = (batch * chunks + index) * H + head
    x_ptr += batch * stride_x_batch + index * CHUNK * stride_x + head * stride_x_head
    B_ptr += batch * stride_B_batch + index * CHUNK * stride_B + head // REPEATS * stride_B_group
    steps_ptr += slot * CHUNK
    sums_ptr += slot * CHUNK

    tokens = tl.minimum(length - index * CHUNK, CHUNK).to(tl.int32)
    last = tl.load(sums_ptr + CHUNK - 1)
    h = tl.zeros([STATES, WIDTH], dtype=tl.float32)
    for start in range(0, tokens, TOKENS):
        t = start + tl.arange(0, TOKENS)
        wide = t.to(tl.int64)
        real = t < tokens
        weight = tl.exp2(last - tl.load(sums_ptr + t)) * tl.load(steps_ptr + t)
        x = tl.load(
            x_ptr + wide[:, None] * stride_x + p[None, :],
            mask=real[:, None] & (p < P)[None, :],
            other=0.0,
        )
        B = tl.load(
            B_ptr + wide[None, :] * stride_B + n[:, None],
            mask=real[None, :] & (n < N)[:, None],
            other=0.0,
        )
        h = dot_split(B, x.to(tl.float32) * weight[:, None], h, PRECISION)

    target = states_ptr + slot * (N * P) + n[:, None] * P + p[None, :]
    tl.store(target, h, mask=(n < N)[:, None] & (p < P)[None, :])


@triton.jit(do_not_specialize=["chunks"])
def walk_chunks(
    state_ptr,
    sums_ptr,
    states_ptr,
    new_state_ptr,
    chunks,
    stride_state_batch,
    stride_state_head,
    stride_state_n,
    stride_state,
    H: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Walk `VALUES` values of a head's state; leave in each slot the state before its chunk."""
    value = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    real = value < N * P

    source = state_ptr + batch * stride_state_batch + head * stride_state_head
    source += value // P * stride_state_n + value % P * stride_state
    h = tl.load(source, mask=real, other=0.0).to(tl.float32)
    for index in range(chunks):
        slot = (batch * chunks + index) * H + head
        target = states_ptr + slot * (N * P) + value
        own = tl.load(target, mask=real, other=0.0)
        decay = tl.exp2(tl.load(sums_ptr + slot * CHUNK + CHUNK - 1))
        tl.store(target, h, mask=real)
        h = decay * h + own
    tl.store(new_state_ptr + (batch * H + head) * (N * P) + value, h, mask=real)


@triton.jit(do_not_specialize=["length"])
def scan_chunks(
    x_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    steps_ptr,
    sums_ptr,
    states_ptr,
    y_ptr,
    length,
    chunks,
    stride_x_batch,
    stride_x,
    stride_x_head,
    stride_B_batch,
    stride_B,
    stride_B_group,
    stride_C_batch,
    stride_C,
    stride_C_group,
    stride_D_head,
    stride_D,
    H: tl.constexpr,
    REPEATS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store a block [TOKENS, WIDTH] of y."""
    WIDTHS: tl.constexpr = (P + WIDTH - 1) // WIDTH
    BLOCKS: tl.constexpr = CHUNK // TOKENS * WIDTHS
    block = tl.program_id(0) % BLOCKS
    index = (tl.program_id(0) // BLOCKS).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    first = block // WIDTHS * TOKENS
    i = first + tl.arange(0, TOKENS)
    p = block % WIDTHS * WIDTH + tl.arange(0, WIDTH)
    state = tl.arange(0, STATES)
    slot = (batch * chunks + index) * H + head
    x_ptr += batch * stride_x_batch + index * CHUNK * stride_x + head * stride_x_head
    B_ptr += batch * stride_B_batch + index * CHUNK * stride_B + head // REPEATS * stride_B_group
    C_ptr += batch * stride_C_batch + index * CHUNK * stride_C + head // REPEATS * stride_C_group
    C_ptr += i.to(tl.int64)[:, None] * stride_C
    steps_ptr += slot * CHUNK
    sums_ptr += slot * CHUNK
    states_ptr += slot * (N * P)

    tokens = tl.minimum(length - index * CHUNK, CHUNK).to(tl.int32)
    rows = (i < tokens)[:, None]
    columns = (p < P)[None, :]
    sums = tl.load(sums_ptr + i)
    y = tl.zeros([TOKENS, WIDTH], dtype=tl.float32)
    for first_n in range(0, N, STATES):
        n = first_n + state
        C = tl.load(C_ptr + n[None, :], mask=rows & (n < N)[None, :], other=0.0)
        source = states_ptr + n[:, None] * P + p[None, :]
        h = tl.load(source, mask=(n < N)[:, None] & columns, other=0.0)
        y = dot_split(C, h, y, PRECISION)
    y *= tl.exp2(sums)[:, None]

    for start in range(0, tl.minimum(first + TOKENS, tokens), TOKENS):
        j = start + tl.arange(0, TOKENS)
        wide = j.to(tl.int64)
        real = j < tokens
        scores = tl.zeros([TOKENS, TOKENS], dtype=tl.float32)
        for first_n in range(0, N, STATES):
            n = first_n + state
            C = tl.load(C_ptr + n[None, :], mask=rows & (n < N)[None, :], other=0.0)
            B = tl.load(
                B_ptr + wide[None, :] * stride_B + n[:, None],
                mask=real[None, :] & (n < N)[:, None],
                other=0.0,
            )
            scores = tl.dot(C, B, acc=scores, input_precision=PRECISION)
        # Masked before the exponential: beyond the diagonal it would overflow.
        seen = i[:, None] >= j[None, :]
        fade = tl.where(seen, sums[:, None] - tl.load(sums_ptr + j)[None, :], float("-inf"))
        weights = scores * tl.exp2(fade) * tl.load(steps_ptr + j)[None, :]
        x = tl.load(
            x_ptr + wide[:, None] * stride_x + p[None, :], mask=real[:, None] & columns, other=0.0
        )
        y = dot_split(weights, x, y, PRECISION)

    if D_ptr is not None:
        source = x_ptr + i.to(tl.int64)[:, None] * stride_x + p[None, :]
        x = tl.load(source, mask=rows & columns, other=0.0).to(tl.float32)
        D = tl.load(D_ptr + head * stride_D_head + p * stride_D, mask=p < P, other=0.0)
        y += D.to(tl.float32)[None, :] * x
    target = ((batch * length + index * CHUNK + i) * H + head) * P
    tl.store(
        y_ptr + target[:, None] + p[None, :], y.to(y_ptr.dtype.element_ty), mask=rows & columns
    )
