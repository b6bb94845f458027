"""The first two of the selective scan's three passes: the state before each chunk.

It knows nothing of y. A program holds the state of 32 channels, a channel a thread, as the last
pass in `triton_kernel.py` does.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.selective_scan.scratch import chunk_shapes, chunk_tokens
from longspan.kernels.selective_scan.triton_tiles import (
    LOG2_E,
    load_channels,
    load_rows,
    load_tile,
    row,
    steps_of,
    store_tile,
)

# Of the walk over the chunks.
BLOCK_CHANNELS, NUM_WARPS = 64, 2


@triton.jit(do_not_specialize=["length", "chunk"])
def _chunk_states(
    x_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    dt_bias_ptr,
    states_ptr,
    sums_ptr,
    length,
    chunk,
    width,
    stride_x_batch,
    stride_x,
    stride_dt_batch,
    stride_dt,
    stride_A,
    stride_A_state,
    stride_B_batch,
    stride_B,
    N: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    index = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, STATES)
    real = channel < width

    A = load_tile(A_ptr, channel, real, stride_A, stride_A_state, N, STATES) * LOG2_E
    dt_bias = load_channels(dt_bias_ptr, channel, real)
    h = tl.zeros([STATES, CHANNELS], dtype=tl.float32)
    steps = tl.zeros([TOKENS, 1, CHANNELS], dtype=tl.float32)
    first = index * chunk
    last = tl.minimum(first + chunk, length)
    for start in range(first, last, TOKENS):
        token = start + tl.arange(0, TOKENS)
        here = token < last
        x = load_rows(x_ptr + batch * stride_x_batch, token, stride_x, channel, here, real)
        dt = load_rows(dt_ptr + batch * stride_dt_batch, token, stride_dt, channel, here, real)
        B = load_rows(B_ptr + batch * stride_B_batch, token, stride_B, n, here, n < N)
        step = steps_of(dt, dt_bias, here, real)
        decays = tl.exp2(step[:, None, :] * A[None, :, :])
        inputs = (step * x)[:, None, :] * B[:, :, None]
        for i in tl.static_range(TOKENS):
            h = row(decays, i, TOKENS) * h + row(inputs, i, TOKENS)
        steps += step[:, None, :]

    slot = batch * tl.num_programs(0) + index
    store_tile(states_ptr + slot * N * width, h, channel, real, 1, width, N, STATES)
    tl.store(sums_ptr + slot * width + channel, tl.sum(tl.sum(steps, axis=0), axis=0), mask=real)


@triton.jit(do_not_specialize=["chunks"])
def _walk_chunks(
    A_ptr,
    state_ptr,
    states_ptr,
    sums_ptr,
    new_state_ptr,
    chunks,
    width,
    stride_A,
    stride_A_state,
    stride_state_batch,
    stride_state,
    stride_state_n,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    real = channel < width

    A = tl.load(A_ptr + channel * stride_A + n * stride_A_state, mask=real, other=0.0)
    A = A.to(tl.float32) * LOG2_E
    source = state_ptr + batch * stride_state_batch + n * stride_state_n
    h = tl.load(source + channel * stride_state, mask=real, other=0.0).to(tl.float32)
    for index in range(chunks):
        slot = batch * chunks + index
        target = states_ptr + (slot * N + n) * width + channel
        local = tl.load(target, mask=real, other=0.0)
        steps = tl.load(sums_ptr + slot * width + channel, mask=real, other=0.0)
        tl.store(target, h, mask=real)
        h = tl.exp2(A * steps) * h + local
    tl.store(new_state_ptr + (batch * width + channel) * N + n, h, mask=real)


def states_before_chunks(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    dt_bias: torch.Tensor | None,
    state: torch.Tensor,
    new_state: torch.Tensor,
    options: dict[str, int],
) -> torch.Tensor:
    """Passes 1 and 2: fill `new_state`, return the states before the chunks [B, chunks, N, E].

    `options` are the last pass's N, STATES, CHANNELS, TOKENS and num_warps.
    """
    batch, length, width = x.shape
    N = A.shape[1]
    states_shape, sums_shape = chunk_shapes(batch, length, width, N)
    states = torch.empty(states_shape, dtype=torch.float32, device=x.device)
    sums = torch.empty(sums_shape, dtype=torch.float32, device=x.device)
    chunks = states_shape[1]
    _chunk_states[(chunks, triton.cdiv(width, options["CHANNELS"]), batch)](
        x,
        dt,
        A,
        B,
        dt_bias,
        states,
        sums,
        length,
        chunk_tokens(length),
        width,
        *x.stride()[:2],
        *dt.stride()[:2],
        *A.stride(),
        *B.stride()[:2],
        **options,
    )
    _walk_chunks[(triton.cdiv(width, BLOCK_CHANNELS), N, batch)](
        A,
        state,
        states,
        sums,
        new_state,
        chunks,
        width,
        *A.stride(),
        *state.stride(),
        N=N,
        CHANNELS=BLOCK_CHANNELS,
        num_warps=NUM_WARPS,
    )
    return states
