"""The kernels of chunked gated linear attention, in the order of their launches.

With a_t the log2 decays, A_ij their sum over j+1 .. i, and S the state before the chunk:

    chunk_scores   s_ij = sum_c q_ic k_jc 2^(A_ij,c), j <= i
    chunk_states   own = sum_j (k_j 2^(A_last,j)) v_j^T
    walk_chunks    S of the next chunk = diag(2^(A_last,-1)) S + own
    chunk_outputs  y_i = scale (sum_j s_ij v_j + (q_i 2^(A_i,-1)) S)

Every sum is taken over the tokens between, never as a difference: no exponential is above one, and
a token that forgets everything costs the sums after it nothing. Between two blocks of 16 tokens a
score is a product of matrices, since 2^(A_ij) is 2^(A_i,first-1) 2^(A_first-1,j); within a block it
is summed pair by pair. FIXED stands for one log decay a head, where A_ij is i - j times that.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# 2^-150 is zero in float32.
MIN_LOG2_DECAY = tl.constexpr(-150.0)


@triton.jit
def log2_decays(log_decay):
    """Log2 decays, none of them infinite: over no tokens at all their sum must be 0."""
    wide = log_decay.to(tl.float32) * LOG2_E
    # Not a maximum: it would make a number of a NaN.
    return tl.where(wide < MIN_LOG2_DECAY, MIN_LOG2_DECAY, wide)


@triton.jit(do_not_specialize=["length", "chunks"])
def chunk_scores(
    q_ptr,
    k_ptr,
    log_decay_ptr,
    scores_ptr,
    length,
    chunks,
    stride_q_batch,
    stride_q,
    stride_q_head,
    stride_k_batch,
    stride_k,
    stride_k_head,
    stride_decay_batch,
    stride_decay,
    stride_decay_head,
    H: tl.constexpr,
    K: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    FIXED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the scores of a block of `BLOCK` tokens with all of the chunk's up to each of them."""
    BLOCKS: tl.constexpr = CHUNK // BLOCK
    first = tl.program_id(0) % BLOCKS * BLOCK
    index = (tl.program_id(0) // BLOCKS).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.arange(0, BLOCK)
    i = first + row
    j = tl.arange(0, CHUNK)
    q_ptr += batch * stride_q_batch + index * CHUNK * stride_q + head * stride_q_head
    k_ptr += batch * stride_k_batch + index * CHUNK * stride_k + head * stride_k_head
    log_decay_ptr += batch * stride_decay_batch + head * stride_decay_head
    log_decay_ptr += index * CHUNK * stride_decay
    scores_ptr += ((batch * chunks + index) * H + head) * CHUNK * CHUNK + i[:, None] * CHUNK

    tokens = tl.minimum(length - index * CHUNK, CHUNK).to(tl.int32)
    if first >= tokens:
        return
    rows = (i < tokens)[:, None]
    # With one decay for all channels the block itself needs no other way.
    before = tl.minimum(first + BLOCK if FIXED else first, tokens)
    scores = tl.zeros([BLOCK, CHUNK], dtype=tl.float32)
    within = tl.zeros([BLOCK, BLOCK], dtype=tl.float32)
    for start in range(0, K, KEYS):
        c = start + tl.arange(0, KEYS)
        real = c < K
        q = tl.load(
            q_ptr + i.to(tl.int64)[:, None] * stride_q + c[None, :],
            mask=rows & real[None, :],
            other=0.0,
        ).to(tl.float32)
        k = tl.load(
            k_ptr + j.to(tl.int64)[None, :] * stride_k + c[:, None],
            mask=(j < before)[None, :] & real[:, None],
            other=0.0,
        ).to(tl.float32)
        if FIXED:
            scores = tl.dot(q, k, acc=scores, input_precision=PRECISION)
        else:
            source = log_decay_ptr + i.to(tl.int64)[:, None] * stride_decay + c[None, :]
            a = log2_decays(tl.load(source, mask=rows & real[None, :], other=0.0))
            source = log_decay_ptr + (j + 1).to(tl.int64)[None, :] * stride_decay + c[:, None]
            mask = (j + 1 < before)[None, :] & real[:, None]
            later = log2_decays(tl.load(source, mask=mask, other=0.0))
            k *= tl.exp2(tl.cumsum(later, axis=1, reverse=True))
            faded = q * tl.exp2(tl.cumsum(a, axis=0))
            scores = tl.dot(faded, k, acc=scores, input_precision=PRECISION)

            between = tl.zeros([BLOCK, KEYS], dtype=tl.float32)
            for step in range(BLOCK):
                column = BLOCK - 1 - step
                t = tl.cast(first + column, tl.int64)
                one = c < tl.where(t < tokens, K, 0)
                key = tl.load(k_ptr + t * stride_k + c, mask=one, other=0.0).to(tl.float32)
                score = tl.sum(q * tl.exp2(between) * key[None, :], axis=1)
                within += tl.where((row == column)[None, :], score[:, None], 0.0)
                decay = log2_decays(
                    tl.load(log_decay_ptr + t * stride_decay + c, mask=one, other=0.0)
                )
                between += tl.where((row >= column)[:, None], decay[None, :], 0.0)
    if FIXED:
        a = log2_decays(tl.load(log_decay_ptr))
        scores *= tl.exp2(tl.where(i[:, None] >= j[None, :], (i[:, None] - j[None, :]) * a, 0.0))
        tl.store(scores_ptr + j[None, :], scores, mask=i[:, None] >= j[None, :])
    else:
        tl.store(scores_ptr + j[None, :], scores, mask=(j < first)[None, :])
        tl.store(scores_ptr + i[None, :], within, mask=row[:, None] >= row[None, :])


@triton.jit(do_not_specialize=["length", "chunks"])
def chunk_states(
    k_ptr,
    v_ptr,
    log_decay_ptr,
    states_ptr,
    sums_ptr,
    length,
    chunks,
    stride_k_batch,
    stride_k,
    stride_k_head,
    stride_v_batch,
    stride_v,
    stride_v_head,
    stride_decay_batch,
    stride_decay,
    stride_decay_head,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    CHUNK: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    FIXED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store a block [KEYS, WIDTH] of a chunk's own state, and the chunk's sums of log2 decays."""
    WIDTHS: tl.constexpr = (V + WIDTH - 1) // WIDTH
    BLOCKS: tl.constexpr = (K + KEYS - 1) // KEYS * WIDTHS
    block = tl.program_id(0) % BLOCKS
    index = (tl.program_id(0) // BLOCKS).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    c = block // WIDTHS * KEYS + tl.arange(0, KEYS)
    p = block % WIDTHS * WIDTH + tl.arange(0, WIDTH)
    t = tl.arange(0, CHUNK)
    wide = t.to(tl.int64)
    slot = (batch * chunks + index) * H + head
    k_ptr += batch * stride_k_batch + index * CHUNK * stride_k + head * stride_k_head
    v_ptr += batch * stride_v_batch + index * CHUNK * stride_v + head * stride_v_head
    log_decay_ptr += batch * stride_decay_batch + head * stride_decay_head
    log_decay_ptr += index * CHUNK * stride_decay

    tokens = tl.minimum(length - index * CHUNK, CHUNK).to(tl.int32)
    k = tl.load(
        k_ptr + wide[None, :] * stride_k + c[:, None],
        mask=(t < tokens)[None, :] & (c < K)[:, None],
        other=0.0,
    ).to(tl.float32)
    v = tl.load(
        v_ptr + wide[:, None] * stride_v + p[None, :],
        mask=(t < tokens)[:, None] & (p < V)[None, :],
        other=0.0,
    ).to(tl.float32)
    if FIXED:
        a = log2_decays(tl.load(log_decay_ptr))
        k *= tl.exp2(tl.where(t < tokens, (tokens - 1 - t) * a, 0.0))[None, :]
        sums = tl.zeros([KEYS], dtype=tl.float32) + tokens * a
    else:
        source = log_decay_ptr + (wide + 1)[None, :] * stride_decay + c[:, None]
        mask = (t + 1 < tokens)[None, :] & (c < K)[:, None]
        later = log2_decays(tl.load(source, mask=mask, other=0.0))
        k *= tl.exp2(tl.cumsum(later, axis=1, reverse=True))
        sums = log2_decays(tl.load(log_decay_ptr + c, mask=c < K, other=0.0)) + tl.sum(later, 1)
    own = tl.dot(k, v, input_precision=PRECISION)

    target = states_ptr + slot * (K * V) + c[:, None] * V + p[None, :]
    tl.store(target, own, mask=(c < K)[:, None] & (p < V)[None, :])
    if block % WIDTHS == 0:
        tl.store(sums_ptr + slot * K + c, sums, mask=c < K)


@triton.jit(do_not_specialize=["chunks"])
def walk_chunks(
    state_ptr,
    sums_ptr,
    states_ptr,
    new_state_ptr,
    chunks,
    stride_state_batch,
    stride_state_head,
    stride_state_key,
    stride_state,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Walk `VALUES` values of a head's state; leave in each slot the state before its chunk.

    `new_state_ptr` may be `state_ptr`: a program writes only what it alone has read.
    """
    value = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    real = value < K * V
    key = value // V

    source = state_ptr + batch * stride_state_batch + head * stride_state_head
    source += key * stride_state_key + value % V * stride_state
    state = tl.load(source, mask=real, other=0.0).to(tl.float32)
    for index in range(chunks):
        slot = (batch * chunks + index) * H + head
        target = states_ptr + slot * (K * V) + value
        own = tl.load(target, mask=real, other=0.0)
        decay = tl.exp2(tl.load(sums_ptr + slot * K + key, mask=real, other=0.0))
        tl.store(target, state, mask=real)
        state = decay * state + own
    tl.store(new_state_ptr + (batch * H + head) * (K * V) + value, state, mask=real)


@triton.jit(do_not_specialize=["scale", "length", "chunks"])
def chunk_outputs(
    q_ptr,
    v_ptr,
    log_decay_ptr,
    scores_ptr,
    states_ptr,
    y_ptr,
    scale,
    length,
    chunks,
    stride_q_batch,
    stride_q,
    stride_q_head,
    stride_v_batch,
    stride_v,
    stride_v_head,
    stride_decay_batch,
    stride_decay,
    stride_decay_head,
    stride_y_batch,
    stride_y,
    stride_y_head,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    FIXED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store a block [CHUNK, WIDTH] of y."""
    WIDTHS: tl.constexpr = (V + WIDTH - 1) // WIDTH
    index = (tl.program_id(0) // WIDTHS).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) % WIDTHS * WIDTH + tl.arange(0, WIDTH)
    t = tl.arange(0, CHUNK)
    wide = t.to(tl.int64)[:, None]
    slot = (batch * chunks + index) * H + head
    q_ptr += batch * stride_q_batch + index * CHUNK * stride_q + head * stride_q_head
    v_ptr += batch * stride_v_batch + index * CHUNK * stride_v + head * stride_v_head
    y_ptr += batch * stride_y_batch + index * CHUNK * stride_y + head * stride_y_head
    log_decay_ptr += batch * stride_decay_batch + head * stride_decay_head
    log_decay_ptr += index * CHUNK * stride_decay

    tokens = tl.minimum(length - index * CHUNK, CHUNK).to(tl.int32)
    rows = (t < tokens)[:, None]
    columns = (p < V)[None, :]
    y = tl.zeros([CHUNK, WIDTH], dtype=tl.float32)
    for start in range(0, K, KEYS):
        c = start + tl.arange(0, KEYS)
        mask = rows & (c < K)[None, :]
        q = tl.load(q_ptr + wide * stride_q + c[None, :], mask=mask, other=0.0).to(tl.float32)
        if not FIXED:
            source = log_decay_ptr + wide * stride_decay + c[None, :]
            a = log2_decays(tl.load(source, mask=mask, other=0.0))
            q *= tl.exp2(tl.cumsum(a, axis=0))
        source = states_ptr + slot * (K * V) + c[:, None] * V + p[None, :]
        state = tl.load(source, mask=(c < K)[:, None] & columns, other=0.0)
        y = tl.dot(q, state, acc=y, input_precision=PRECISION)
    if FIXED:
        y *= tl.exp2((t + 1) * log2_decays(tl.load(log_decay_ptr)))[:, None]

    scores_ptr += slot * CHUNK * CHUNK + t[:, None] * CHUNK
    for start in range(0, CHUNK, TOKENS):
        j = start + tl.arange(0, TOKENS)
        mask = rows & (t[:, None] >= j[None, :])
        scores = tl.load(scores_ptr + j[None, :], mask=mask, other=0.0)
        source = v_ptr + j.to(tl.int64)[:, None] * stride_v + p[None, :]
        v = tl.load(source, mask=(j < tokens)[:, None] & columns, other=0.0).to(tl.float32)
        y = tl.dot(scores, v, acc=y, input_precision=PRECISION)
    target = y_ptr + wide * stride_y + p[None, :]
    tl.store(target, y * scale, mask=rows & columns)
