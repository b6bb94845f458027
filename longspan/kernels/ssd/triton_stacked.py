"""The state-space dual for several heads of a group at once, stacked as the rows of one tile.

B and C belong to a group of heads, and reading them anew for every head is what a walk of one head
waits for. Here the heads' channels are the rows r of one transposed state h [rows, N], and every
product has B, C or their own product for its right side, which all rows share. With r the half of
a chunk's sum of log2 decays:

    g_j = 2^(r - cs_j) step_j x_j                      rows of the chunk's inputs, once
    y_i = 2^(cs_i - r) (2^r h C_i + sum_{j <= i} g_j B_j . C_i) + D x_i
    h  <- 2^r (2^r h + sum_j g_j B_j)

2^(cs_i - cs_j) is thus a product of two factors, which float32 and bfloat16 hold while the decay of
a whole chunk is above `MIN_LOG2_CHUNK`. A segment with a chunk that forgets more goes to
`triton_chunks.walk_segments`, whose exponents are differences and never overflow.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from longspan.kernels.ssd.triton_chunks import (
    MIN_LOG2_CHUNK,
    chunk_decays,
    half_decay,
    load_rows,
    store_rows,
)

# Below it a factor is zero in float32.
MIN_LOG2 = tl.constexpr(-150.0)


@triton.jit
def of_rows(ptr, inner, HEADS: tl.constexpr, CHUNK: tl.constexpr):
    """The numbers of a chunk's tokens, for each row those of its head [rows, CHUNK]."""
    token = tl.arange(0, CHUNK)
    spread = tl.load(ptr + token)[None, :]
    for k in tl.static_range(1, HEADS):
        values = tl.load(ptr + k * CHUNK + token)
        spread = tl.where(inner[:, None] == k, values[None, :], spread)
    return spread


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


@triton.jit(do_not_specialize=["length", "chunks", "each"])
def stacked_states(
    x_ptr,
    B_ptr,
    sums_ptr,
    ends_ptr,
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
    HEADS: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,
    MOST: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Store a segment's own states, from zero, and its sums of log2 decays.

    From its end backwards, as each input's weight is the decay after it; what the segment forgets
    is not read.
    """
    ROWS: tl.constexpr = HEADS * P
    segment = tl.program_id(0) // PARTS
    head = tl.program_id(1).to(tl.int64) * HEADS
    batch = tl.program_id(2).to(tl.int64)
    row = tl.arange(0, ROWS)
    n = tl.program_id(0) % PARTS * (STATES // PARTS) + tl.arange(0, STATES // PARTS)
    inner = row // P
    channel = inner * stride_x_head + row % P
    x_ptr += batch * stride_x_batch + head * stride_x_head
    B_ptr += batch * stride_B_batch + head // REPEATS * stride_B_group
    ends_ptr += (batch * chunks * H + head) * CHUNK
    sums_ptr += (batch * chunks * H + head) * CHUNK

    first = segment * each
    end = tl.minimum(first + each, chunks)
    decays = chunk_decays(sums_ptr, first, end, H, HEADS, CHUNK, MOST)
    later = tl.cumsum(decays, axis=0, reverse=True) - decays
    heard = tl.max(later, axis=1) > MIN_LOG2
    count = tl.sum((heard & (tl.arange(0, MOST) < end - first)).to(tl.int32), axis=0)

    h = tl.zeros([ROWS, STATES // PARTS], dtype=tl.float32)
    after = tl.zeros([ROWS], dtype=tl.float32)
    for back in tl.range(0, count, num_stages=STAGES):
        index = end - 1 - back
        start = tl.cast(index, tl.int64) * CHUNK
        at = tl.cast(index, tl.int64) * H * CHUNK
        left = (length - start).to(tl.int32)
        B = load_rows(B_ptr + start * stride_B, stride_B, left, n, N, CHUNK, EVEN)
        x = load_rows(x_ptr + start * stride_x, stride_x, left, channel, 1 << 30, CHUNK, EVEN)
        half = half_decay(tl.load(sums_ptr + at + inner * CHUNK + CHUNK - 1))
        weights = of_rows(ends_ptr + at, inner, HEADS, CHUNK) * tl.exp2(after + half)[:, None]
        g = (x.trans().to(tl.float32) * weights).to(x.dtype)
        h = tl.dot(g, B, acc=h)
        after += tl.load(sums_ptr + at + inner * CHUNK + CHUNK - 1)

    slot = (batch * (tl.num_programs(0) // PARTS) + segment) * H + head
    target = states_ptr + (slot + inner)[:, None] * (N * P) + n[None, :] * P + (row % P)[:, None]
    tl.store(target, h, mask=(n < N)[None, :])
    total = tl.sum(decays, axis=0)
    tl.store(totals_ptr + slot + tl.arange(0, HEADS), total)


@triton.jit(do_not_specialize=["length", "chunks", "each"])
def stacked_walk(
    x_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    products_ptr,
    sums_ptr,
    starts_ptr,
    ends_ptr,
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
    HEADS: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,
    MOST: tl.constexpr,
    VARIANT: tl.constexpr = 0,
):
    """Store a segment's y; the last segment stores the new states. Nothing if it `forgets`."""
    ROWS: tl.constexpr = HEADS * P
    segments = tl.num_programs(0)
    segment = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64) * HEADS
    batch = tl.program_id(2).to(tl.int64)
    row = tl.arange(0, ROWS)
    n = tl.arange(0, STATES)
    token = tl.arange(0, CHUNK)
    inner, p = row // P, row % P
    channel = inner * stride_x_head + p
    x_ptr += batch * stride_x_batch + head * stride_x_head
    B_ptr += batch * stride_B_batch + head // REPEATS * stride_B_group
    C_ptr += batch * stride_C_batch + head // REPEATS * stride_C_group
    starts_ptr += (batch * chunks * H + head) * CHUNK
    ends_ptr += (batch * chunks * H + head) * CHUNK
    sums_ptr += (batch * chunks * H + head) * CHUNK
    y_ptr += batch * stride_y_batch + head * P
    products_ptr += (batch * (H // REPEATS) + head // REPEATS) * chunks * (CHUNK * CHUNK)

    first = segment * each
    end = tl.minimum(first + each, chunks)
    real = (n < N)[None, :]
    own = inner[:, None] * (N * P) + n[None, :] * P + p[:, None]
    state_ptr += batch * stride_state_batch + head * stride_state_head
    source = inner.to(tl.int64)[:, None] * stride_state_head + p[:, None] * stride_state
    source += n.to(tl.int64)[None, :] * stride_state_n
    h = tl.load(state_ptr + source, mask=real, other=0.0).to(tl.float32)
    slot = batch * (segments - 1) * H + head
    for before in range(segment):
        at = slot + before * H
        h = h * tl.exp2(tl.load(totals_ptr + at + inner))[:, None]
        h += tl.load(states_ptr + at * (N * P) + own, mask=real, other=0.0)
    D = tl.zeros([ROWS], dtype=tl.float32)
    if D_ptr is not None:
        D = tl.load(D_ptr + (head + inner) * stride_D_head + p * stride_D).to(tl.float32)

    # The state is h * factor: one multiplication serves the end of a chunk and the next one's r.
    factor = tl.full([ROWS], 1.0, dtype=tl.float32)
    for index in tl.range(first, end, num_stages=STAGES):
        start = tl.cast(index, tl.int64) * CHUNK
        at = tl.cast(index, tl.int64) * H * CHUNK
        left = (length - start).to(tl.int32)
        C = load_rows(C_ptr + start * stride_C, stride_C, left, n, N, CHUNK, EVEN)
        B = load_rows(B_ptr + start * stride_B, stride_B, left, n, N, CHUNK, EVEN)
        x = load_rows(x_ptr + start * stride_x, stride_x, left, channel, 1 << 30, CHUNK, EVEN)
        block = products_ptr + tl.cast(index, tl.int64) * (CHUNK * CHUNK)
        products = tl.load(block + token[:, None] * CHUNK + token[None, :])

        total = tl.load(sums_ptr + at + inner * CHUNK + CHUNK - 1)
        half = half_decay(total)
        carried = (h * (factor * tl.exp2(half))[:, None]).to(x.dtype)
        h = h * (factor * tl.exp2(total - half))[:, None]
        factor = tl.exp2(half)
        weights = of_rows(ends_ptr + at, inner, HEADS, CHUNK)
        g = (x.trans().to(tl.float32) * weights).to(x.dtype)
        y = tl.dot(carried, C.trans())
        y = tl.dot(g, products, acc=y)
        y = y * of_rows(starts_ptr + at, inner, HEADS, CHUNK)
        h = tl.dot(g, B, acc=h)
        y_rows = y_ptr + start * (H * P)
        if D_ptr is None:
            store_rows(y_rows, y.trans(), H * P, left, row, 1 << 30, CHUNK, EVEN)
        elif VARIANT & 1 == 0:
            y += D[:, None] * x.trans().to(tl.float32)
            store_rows(y_rows, y.trans(), H * P, left, row, 1 << 30, CHUNK, EVEN)
        else:
            out = y.trans() + D[None, :] * x.to(tl.float32)
            store_rows(y_rows, out, H * P, left, row, 1 << 30, CHUNK, EVEN)

    if segment == segments - 1:
        target = new_state_ptr + (batch * H + head) * (N * P) + own
        tl.store(target, h * factor[:, None], mask=real)


@triton.jit(do_not_specialize=["length"])
def add_within(
    x_ptr,
    products_ptr,
    steps_ptr,
    sums_ptr,
    y_ptr,
    length,
    stride_x_batch,
    stride_x,
    stride_x_head,
    stride_y_batch,
    H: tl.constexpr,
    REPEATS: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Add sum_j exp(cs_i - cs_j) step_j (C_i . B_j) x_j to y where a chunk's decay cannot be split."""
    index = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    token, p = tl.arange(0, CHUNK), tl.arange(0, P)
    chunks = tl.num_programs(0)
    at = (batch * chunks + index) * H * CHUNK
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    decays = tl.load(sums_ptr + at + heads * CHUNK + CHUNK - 1, mask=heads < H, other=0.0)
    if tl.min(decays, axis=0) < MIN_LOG2_CHUNK:
        start = index * CHUNK
        inside = (token < length - start)[:, None]
        for k in range(HEADS):
            head = (tl.program_id(1) * HEADS + k).to(tl.int64)
            decay = tl.load(sums_ptr + at + head * CHUNK + CHUNK - 1, mask=head < H, other=0.0)
            if decay < MIN_LOG2_CHUNK:
                slot = (batch * (H // REPEATS) + head // REPEATS) * chunks + index
                block = products_ptr + slot * CHUNK * CHUNK
                products = tl.load(block + token[None, :] * CHUNK + token[:, None])
                sums = tl.load(sums_ptr + at + head * CHUNK + token)
                steps = tl.load(steps_ptr + at + head * CHUNK + token)
                # Masked before the exponential: beyond the diagonal it would overflow.
                seen = token[:, None] >= token[None, :]
                fade = tl.where(seen, sums[:, None] - sums[None, :], float("-inf"))
                weights = products.to(tl.float32) * tl.exp2(fade) * steps[None, :]
                x_rows = x_ptr + batch * stride_x_batch + head * stride_x_head + start * stride_x
                x = tl.load(x_rows + token[:, None] * stride_x + p[None, :], mask=inside, other=0.0)
                y_rows = y_ptr + batch * stride_y_batch + (start * H + head) * P
                y_rows += token[:, None] * (H * P) + p[None, :]
                y = tl.load(y_rows, mask=inside, other=0.0).to(tl.float32)
                y = tl.dot(weights.to(x.dtype), x, acc=y)
                tl.store(y_rows, y.to(y_ptr.dtype.element_ty), mask=inside)
