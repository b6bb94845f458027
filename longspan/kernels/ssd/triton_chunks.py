"""The kernels of the chunked state-space dual, in the order of their launches.

With cs_i the sum of step A over a chunk's tokens up to i, and h the state before the chunk:

    chunk_sums      step_i and cs_i
    segment_states  the state after each segment but the last, from zero, without y
    walk_segments   chunk by chunk, with h in registers:
        y_i = sum_{j <= i} C_i . B_j exp(cs_i - cs_j) step_j x_j + exp(cs_i) C_i h + D x_i
        h  <- exp(cs_last) h + sum_j exp(cs_last - cs_j) step_j B_j x_j^T
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from longspan.kernels.ssd.triton_math import LOG2_E, dot_rounded, softplus_step

# 2^-150 is zero in float32; without a floor one such token would cost cs the digits of the others.
MIN_LOG2_DECAY = tl.constexpr(-150.0)


@triton.jit
def steps_and_sums(dt, A, inside, low, high):
    """Steps of a chunk's tokens [CHUNK, ...], zero where not `inside`, and sums of log2 decays."""
    step = tl.where(inside, softplus_step(dt, low, high), 0.0)
    return step, tl.cumsum(tl.maximum(step * A, MIN_LOG2_DECAY), axis=0)


@triton.jit
def load_steps(
    dt_ptr, A_ptr, dt_bias_ptr, low, high, left, stride_dt, stride_dt_head, head, real,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Steps and sums of a chunk in several heads [CHUNK, heads]."""
    token = tl.arange(0, CHUNK)[:, None]
    inside = (token < left) & real[None, :]
    A = tl.load(A_ptr + head, mask=real, other=0.0).to(tl.float32) * LOG2_E
    offsets = token * stride_dt + head[None, :] * stride_dt_head
    dt = tl.load(dt_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if dt_bias_ptr is not None:
        dt += tl.load(dt_bias_ptr + head, mask=real, other=0.0).to(tl.float32)[None, :]
    return steps_and_sums(dt, A[None, :], inside, low, high)


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
    real = head < H
    start = index * CHUNK
    dt_ptr += batch * stride_dt_batch + start * stride_dt
    left = (length - start).to(tl.int32)
    step, sums = load_steps(
        dt_ptr, A_ptr, dt_bias_ptr, low, high, left, stride_dt, stride_dt_head, head, real, CHUNK
    )
    target = (batch * tl.num_programs(0) + index) * H * CHUNK
    target += head[None, :] * CHUNK + tl.arange(0, CHUNK)[:, None]
    tl.store(steps_ptr + target, step, mask=real[None, :])
    tl.store(sums_ptr + target, sums, mask=real[None, :])


@triton.jit
def load_rows(
    ptr, stride, left, column, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr
):
    """A chunk's rows; `EVEN`: all of them and all columns exist, so nothing is masked."""
    row = tl.arange(0, CHUNK)
    source = ptr + row[:, None] * stride + column[None, :]
    if EVEN:
        return tl.load(source)
    return tl.load(source, mask=(row < left)[:, None] & (column < COLUMNS)[None, :], other=0.0)


@triton.jit
def next_state(h, B, x, sums, steps, last, PRECISION: tl.constexpr):
    """exp(cs_last) h + sum_j exp(cs_last - cs_j) step_j B_j x_j^T."""
    weight = tl.exp2(last - sums) * steps
    inputs = x.to(tl.float32) * weight[:, None]
    return dot_rounded(B.trans(), inputs, h * tl.exp2(last), PRECISION)


@triton.jit
def outputs(
    h,
    products,
    C,
    x,
    D,
    sums,
    steps,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    SKIP_ON_DIAGONAL: tl.constexpr,
):
    """sum_{j <= i} C_i . B_j exp(cs_i - cs_j) step_j x_j + exp(cs_i) C_i h + D x_i."""
    token = tl.arange(0, CHUNK)
    # Masked before the exponential: beyond the diagonal it would overflow.
    seen = token[:, None] >= token[None, :]
    fade = tl.where(seen, sums[:, None] - sums[None, :], float("-inf"))
    weights = products * tl.exp2(fade) * steps[None, :]
    if SKIP_ON_DIAGONAL:
        weights += tl.where(token[:, None] == token[None, :], D, 0.0)
    y = dot_rounded(C, h, tl.zeros([CHUNK, WIDTH], dtype=tl.float32), PRECISION)
    y = dot_rounded(weights, x, y * tl.exp2(sums)[:, None], PRECISION)
    if not SKIP_ON_DIAGONAL:
        y += D[None, :] * x.to(tl.float32)
    return y


@triton.jit
def skip(D_ptr, stride_D_head, stride_D, head, p, P: tl.constexpr, SKIP_ON_DIAGONAL: tl.constexpr):
    """D of a head: one number, or one for each channel; zeros for none."""
    if SKIP_ON_DIAGONAL:
        D = tl.load(D_ptr + head * stride_D_head)
    elif D_ptr is None:
        D = p * 0
    else:
        D = tl.load(D_ptr + head * stride_D_head + p * stride_D, mask=p < P, other=0.0)
    return D.to(tl.float32)


@triton.jit
def passed_state(
    state_ptr,
    states_ptr,
    totals_ptr,
    slot,
    segment,
    H: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    offsets,
    own,
    real,
):
    """The state before a segment: the call's, carried over the segments before."""
    h = tl.load(state_ptr + offsets, mask=real, other=0.0).to(tl.float32)
    for before in range(segment):
        at = slot + before * H
        h = h * tl.exp2(tl.load(totals_ptr + at))
        h += tl.load(states_ptr + at * (N * P) + own, mask=real, other=0.0)
    return h


@triton.jit
def store_rows(
    ptr, y, stride, left, column, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr
):
    """A chunk's rows of the output; `EVEN` as in `load_rows`."""
    row = tl.arange(0, CHUNK)
    target = ptr + row[:, None] * stride + column[None, :]
    y = y.to(ptr.dtype.element_ty)
    if EVEN:
        tl.store(target, y)
    else:
        tl.store(target, y, mask=(row < left)[:, None] & (column < COLUMNS)[None, :])


@triton.jit(do_not_specialize=["length", "chunks", "each"])
def segment_states(
    x_ptr,
    B_ptr,
    steps_ptr,
    sums_ptr,
    states_ptr,
    totals_ptr,
    length,
    chunks,
    each,
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
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Store `WIDTH` channels of a segment's own state, from zero, and its sum of log2 decays."""
    WIDTHS: tl.constexpr = (P + WIDTH - 1) // WIDTH
    segment = tl.program_id(0) // WIDTHS
    p = tl.program_id(0) % WIDTHS * WIDTH + tl.arange(0, WIDTH)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, STATES)
    token = tl.arange(0, CHUNK)
    x_ptr += batch * stride_x_batch + head * stride_x_head
    B_ptr += batch * stride_B_batch + head // REPEATS * stride_B_group
    steps_ptr += (batch * chunks * H + head) * CHUNK
    sums_ptr += (batch * chunks * H + head) * CHUNK

    h = tl.zeros([STATES, WIDTH], dtype=tl.float32)
    total = 0.0
    first = segment * each
    for index in tl.range(first, tl.minimum(first + each, chunks), num_stages=STAGES):
        start = tl.cast(index, tl.int64) * CHUNK
        at = tl.cast(index, tl.int64) * H * CHUNK
        left = (length - start).to(tl.int32)
        B = load_rows(B_ptr + start * stride_B, stride_B, left, n, N, CHUNK, EVEN)
        x_rows = x_ptr + start * stride_x
        x = load_rows(x_rows, stride_x, left, p, P, CHUNK, EVEN)
        last = tl.load(sums_ptr + at + CHUNK - 1)
        sums = tl.load(sums_ptr + at + token)
        steps = tl.load(steps_ptr + at + token)
        h = next_state(h, B, x, sums, steps, last, PRECISION)
        total += last

    slot = (batch * (tl.num_programs(0) // WIDTHS) + segment) * H + head
    real = (n < N)[:, None] & (p < P)[None, :]
    target = states_ptr + slot * (N * P) + n[:, None] * P + p[None, :]
    tl.store(target, h, mask=real)
    tl.store(totals_ptr + slot, total)


@triton.jit(do_not_specialize=["length", "chunks", "each"])
def walk_segments(
    x_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    steps_ptr,
    sums_ptr,
    states_ptr,
    totals_ptr,
    state_ptr,
    y_ptr,
    new_state_ptr,
    length,
    chunks,
    each,
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
    stride_state_batch,
    stride_state_head,
    stride_state_n,
    stride_state,
    stride_y_batch,
    H: tl.constexpr,
    REPEATS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,
    SKIP_ON_DIAGONAL: tl.constexpr,
):
    """Store `WIDTH` channels of a segment's y; the last segment stores the new state."""
    WIDTHS: tl.constexpr = (P + WIDTH - 1) // WIDTH
    segments = tl.num_programs(0) // WIDTHS
    segment = tl.program_id(0) // WIDTHS
    p = tl.program_id(0) % WIDTHS * WIDTH + tl.arange(0, WIDTH)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, STATES)
    token = tl.arange(0, CHUNK)
    x_ptr += batch * stride_x_batch + head * stride_x_head
    B_ptr += batch * stride_B_batch + head // REPEATS * stride_B_group
    C_ptr += batch * stride_C_batch + head // REPEATS * stride_C_group
    steps_ptr += (batch * chunks * H + head) * CHUNK
    sums_ptr += (batch * chunks * H + head) * CHUNK
    y_ptr += batch * stride_y_batch + head * P

    slot = batch * (segments - 1) * H + head
    real = (n < N)[:, None] & (p < P)[None, :]
    offsets = n.to(tl.int64)[:, None] * stride_state_n + p.to(tl.int64)[None, :] * stride_state
    own = n[:, None] * P + p[None, :]
    state_ptr += batch * stride_state_batch + head * stride_state_head
    h = passed_state(state_ptr, states_ptr, totals_ptr, slot, segment, H, N, P, offsets, own, real)
    D = skip(D_ptr, stride_D_head, stride_D, head, p, P, SKIP_ON_DIAGONAL)

    first = segment * each
    for index in tl.range(first, tl.minimum(first + each, chunks), num_stages=STAGES):
        start = tl.cast(index, tl.int64) * CHUNK
        at = tl.cast(index, tl.int64) * H * CHUNK
        left = (length - start).to(tl.int32)
        C = load_rows(C_ptr + start * stride_C, stride_C, left, n, N, CHUNK, EVEN)
        B = load_rows(B_ptr + start * stride_B, stride_B, left, n, N, CHUNK, EVEN)
        products = tl.dot(C, B.trans(), input_precision=PRECISION)
        x_rows, y_rows = x_ptr + start * stride_x, y_ptr + start * (H * P)

        x = load_rows(x_rows, stride_x, left, p, P, CHUNK, EVEN)
        last = tl.load(sums_ptr + at + CHUNK - 1)
        sums = tl.load(sums_ptr + at + token)
        steps = tl.load(steps_ptr + at + token)
        y = outputs(h, products, C, x, D, sums, steps, CHUNK, WIDTH, PRECISION, SKIP_ON_DIAGONAL)
        store_rows(y_rows, y, H * P, left, p, P, CHUNK, EVEN)
        h = next_state(h, B, x, sums, steps, last, PRECISION)

    if segment == segments - 1:
        target = new_state_ptr + (batch * H + head) * (N * P) + own
        tl.store(target, h, mask=real)
