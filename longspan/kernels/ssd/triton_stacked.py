"""The state-space dual for several heads of a group at once, stacked as the rows of one tile.

B and C belong to a group of heads, and reading them anew for every head is what a walk of one head
waits for. Here the heads' channels are the rows of one transposed state h [rows, N], and every
product has B, C or their own products for its right side, which all rows share:

    chunk_factors   starts, ends and log2 decays of the chunks, head by head (triton_within.py)
    chunk_products  B_j . C_i of the chunks, once a group (triton_within.py)
    stacked_states  the state after each segment but the last, from zero
    stacked_walk    chunk by chunk, with h in registers
    add_within      what the walk leaves out (triton_within.py)

With cs_i the sum of log2 decays over a chunk's tokens up to i, and r half of the whole chunk's:

    starts_i = 2^(cs_i - r)        ends_j = 2^(cs_last - cs_j - r) step_j        g_j = ends_j x_j
    y_i = starts_i (2^r h C_i + sum_{j <= i} g_j B_j . C_i) + D x_i
    h  <- 2^r (2^r h + sum_j g_j B_j)

So 2^(cs_i - cs_j) is a product of two factors, as far as these are numbers of float32 and bfloat16:
while a chunk's decay is above 2^MIN_LOG2_CHUNK. Where it is below, r is zero; then the sum over j
is less than that decay, which is nothing, and `add_within` adds what it should have been.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from longspan.kernels.ssd.triton_chunks import load_rows, store_rows
from longspan.kernels.ssd.triton_within import half_of

# Below it a factor is zero in float32.
MIN_LOG2 = tl.constexpr(-150.0)
# All columns of a tile of rows exist.
ALL = tl.constexpr(1 << 30)


@triton.jit
def of_rows(ptr, inner, HEADS: tl.constexpr, CHUNK: tl.constexpr):
    """The numbers of a chunk's tokens, for each row those of its head [rows, CHUNK]."""
    token = tl.arange(0, CHUNK)
    spread = tl.load(ptr + token)[None, :]
    for k in tl.static_range(1, HEADS):
        values = tl.load(ptr + k * CHUNK + token)
        spread = tl.where(inner[:, None] == k, values[None, :], spread)
    return spread


@triton.jit
def identity(CHUNK: tl.constexpr, ptr):
    """In the dtype of `ptr`.

    x^T times it is x^T where a product leaves its results, exactly. Passing x through shared memory
    instead took a third of the walk's time on an H100.
    """
    token = tl.arange(0, CHUNK)
    return (token[:, None] == token[None, :]).to(ptr.dtype.element_ty)


@triton.jit(do_not_specialize=["length", "chunks", "each"])
def stacked_states(
    x_ptr,
    B_ptr,
    ends_ptr,
    decays_ptr,
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
    MOST: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Store a segment's own states, from zero, and its sums of log2 decays.

    It walks from the segment's end, where an input's weight is the decay after it, and stops where
    that is nothing in all heads.
    """
    ROWS: tl.constexpr = HEADS * P
    segment = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64) * HEADS
    batch = tl.program_id(2).to(tl.int64)
    row, n = tl.arange(0, ROWS), tl.arange(0, STATES)
    inner, p = row // P, row % P
    channel = inner * stride_x_head + p
    x_ptr += batch * stride_x_batch + head * stride_x_head
    B_ptr += batch * stride_B_batch + head // REPEATS * stride_B_group
    ends_ptr += (batch * chunks * H + head) * CHUNK
    decays_ptr += batch * chunks * H + head

    first = segment * each
    end = tl.minimum(first + each, chunks)
    index = first + tl.arange(0, MOST)
    offsets = index[:, None] * H + tl.arange(0, HEADS)[None, :]
    decays = tl.load(decays_ptr + offsets, mask=index[:, None] < end, other=0.0)
    later = tl.cumsum(decays, axis=0, reverse=True) - decays
    heard = (tl.max(later, axis=1) > MIN_LOG2) & (index < end)
    count = tl.sum(heard.to(tl.int32), axis=0)

    eye = identity(CHUNK, x_ptr)
    h = tl.zeros([ROWS, STATES], dtype=tl.float32)
    after = tl.zeros([ROWS], dtype=tl.float32)
    for back in tl.range(0, count, num_stages=STAGES):
        chunk = tl.cast(end - 1 - back, tl.int64)
        start = chunk * CHUNK
        left = (length - start).to(tl.int32)
        B = load_rows(B_ptr + start * stride_B, stride_B, left, n, N, CHUNK, EVEN)
        x = load_rows(x_ptr + start * stride_x, stride_x, left, channel, ALL, CHUNK, EVEN)
        turned = tl.dot(x.trans(), eye)
        decay = tl.load(decays_ptr + chunk * H + inner)
        ends = of_rows(ends_ptr + start * H, inner, HEADS, CHUNK)
        g = turned * ends * tl.exp2(after + half_of(decay))[:, None]
        h = tl.dot(g.to(x.dtype), B, acc=h)
        after += decay

    slot = (batch * tl.num_programs(0) + segment) * H + head
    target = states_ptr + (slot + inner)[:, None] * (N * P) + n[None, :] * P + p[:, None]
    tl.store(target, h, mask=(n < N)[None, :])
    tl.store(totals_ptr + slot + tl.arange(0, HEADS), tl.sum(decays, axis=0))


@triton.jit(do_not_specialize=["length", "chunks", "each"])
def stacked_walk(
    x_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    products_ptr,
    starts_ptr,
    ends_ptr,
    decays_ptr,
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
):
    """Store a segment's y; the last segment stores the new states."""
    ROWS: tl.constexpr = HEADS * P
    segments = tl.num_programs(0)
    segment = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64) * HEADS
    batch = tl.program_id(2).to(tl.int64)
    row, n, token = tl.arange(0, ROWS), tl.arange(0, STATES), tl.arange(0, CHUNK)
    inner, p = row // P, row % P
    channel = inner * stride_x_head + p
    x_ptr += batch * stride_x_batch + head * stride_x_head
    B_ptr += batch * stride_B_batch + head // REPEATS * stride_B_group
    C_ptr += batch * stride_C_batch + head // REPEATS * stride_C_group
    products_ptr += (batch * (H // REPEATS) + head // REPEATS) * chunks * (CHUNK * CHUNK)
    starts_ptr += (batch * chunks * H + head) * CHUNK
    ends_ptr += (batch * chunks * H + head) * CHUNK
    decays_ptr += batch * chunks * H + head
    y_ptr += batch * stride_y_batch + head * P

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

    eye = identity(CHUNK, x_ptr)
    # The state is h * factor: one multiplication serves a chunk's end and the next one's 2^r.
    factor = tl.full([ROWS], 1.0, dtype=tl.float32)
    first = segment * each
    for index in tl.range(first, tl.minimum(first + each, chunks), num_stages=STAGES):
        chunk = tl.cast(index, tl.int64)
        start = chunk * CHUNK
        left = (length - start).to(tl.int32)
        C = load_rows(C_ptr + start * stride_C, stride_C, left, n, N, CHUNK, EVEN)
        B = load_rows(B_ptr + start * stride_B, stride_B, left, n, N, CHUNK, EVEN)
        x = load_rows(x_ptr + start * stride_x, stride_x, left, channel, ALL, CHUNK, EVEN)
        block = products_ptr + chunk * (CHUNK * CHUNK)
        products = tl.load(block + token[:, None] * CHUNK + token[None, :])

        # First, so that the last product of the chunk before ends beside it.
        turned = tl.dot(x.trans(), eye)
        decay = tl.load(decays_ptr + chunk * H + inner)
        half = half_of(decay)
        carried = (h * (factor * tl.exp2(half))[:, None]).to(x.dtype)
        h = h * (factor * tl.exp2(decay - half))[:, None]
        factor = tl.exp2(half)
        g = (turned * of_rows(ends_ptr + start * H, inner, HEADS, CHUNK)).to(x.dtype)
        y = tl.dot(carried, C.trans())
        y = tl.dot(g, products, acc=y)
        h = tl.dot(g, B, acc=h)
        y = y * of_rows(starts_ptr + start * H, inner, HEADS, CHUNK)
        if D_ptr is not None:
            y += D[:, None] * turned
        store_rows(y_ptr + start * (H * P), y.trans(), H * P, left, row, ALL, CHUNK, EVEN)

    if segment == segments - 1:
        target = new_state_ptr + (batch * H + head) * (N * P) + own
        tl.store(target, h * factor[:, None], mask=real)
