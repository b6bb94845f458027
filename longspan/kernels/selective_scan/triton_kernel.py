"""The selective scan in Triton: softplus, decay, skip and gate fused with the recurrence.

A program holds the state of 32 channels as a tile [N, channels] and reads a few tokens at a time.
A thread owns a whole channel, so the sum over N needs no exchange between threads; a tile [tokens,
N, channels] has its tokens in a thread too, and `_row` costs nothing. It all rests on the layout
that Triton gives a tile when no load decides for it.

Few tokens, or channels enough to fill the device: one pass, token after token. Otherwise three:
1. `_chunk_states`: each chunk's state from zero, and its sum of steps (decay exp(A sum)).
2. `_walk_chunks`: from chunk to chunk; leaves in each slot the state before that chunk.
3. `_scan`: each chunk again, from its right state, writing y.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.donation import new_like
from longspan.kernels.selective_scan.scratch import chunk_tokens, scratch_shapes
from longspan.kernels.selective_scan.triton_tiles import (
    LOG2_E,
    load_channels,
    load_rows,
    load_tile,
    row,
    softplus,
    store_tile,
)

# One thread a channel (see the module's docstring).
BLOCK_CHANNELS = 32
# Tokens loaded and computed together. Their decays are 64 registers of a thread if N = 16.
BLOCK_TOKENS = 4
# States of a channel that one thread holds: more are spread over warps.
THREAD_STATES = 16
WALK_CHANNELS, WALK_WARPS = 64, 2


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
        # A step of zero keeps the state: past the chunk's end, and in channels that are not there.
        step = tl.where(here[:, None] & real[None, :], softplus(dt + dt_bias[None, :]), 0.0)
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


@triton.jit(do_not_specialize=["length", "chunk"])
def _scan(
    x_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    z_ptr,
    dt_bias_ptr,
    state_ptr,
    y_ptr,
    new_state_ptr,
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
    stride_C_batch,
    stride_C,
    stride_z_batch,
    stride_z,
    stride_state_batch,
    stride_state_chunk,
    stride_state,
    stride_state_n,
    N: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    index = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, STATES)
    t = tl.arange(0, TOKENS)
    real = channel < width
    y_ptr += batch * length * width
    state_ptr += batch * stride_state_batch + index * stride_state_chunk

    A = load_tile(A_ptr, channel, real, stride_A, stride_A_state, N, STATES) * LOG2_E
    dt_bias = load_channels(dt_bias_ptr, channel, real)
    D = load_channels(D_ptr, channel, real)
    h = load_tile(state_ptr, channel, real, stride_state, stride_state_n, N, STATES)
    first = index * chunk
    last = tl.minimum(first + chunk, length)
    for start in range(first, last, TOKENS):
        token = start + t
        here = token < last
        x = load_rows(x_ptr + batch * stride_x_batch, token, stride_x, channel, here, real)
        dt = load_rows(dt_ptr + batch * stride_dt_batch, token, stride_dt, channel, here, real)
        B = load_rows(B_ptr + batch * stride_B_batch, token, stride_B, n, here, n < N)
        C = load_rows(C_ptr + batch * stride_C_batch, token, stride_C, n, here, n < N)
        # As in `_chunk_states`.
        step = tl.where(here[:, None] & real[None, :], softplus(dt + dt_bias[None, :]), 0.0)
        decays = tl.exp2(step[:, None, :] * A[None, :, :])
        inputs = (step * x)[:, None, :] * B[:, :, None]
        states = tl.zeros([TOKENS, STATES, CHANNELS], dtype=tl.float32)
        for i in tl.static_range(TOKENS):
            h = row(decays, i, TOKENS) * h + row(inputs, i, TOKENS)
            states = tl.where((t == i)[:, None, None], h[None, :, :], states)
        y = tl.sum(states * C[:, :, None], axis=1) + D[None, :] * x
        if z_ptr is not None:
            z = load_rows(z_ptr + batch * stride_z_batch, token, stride_z, channel, here, real)
            # z sigmoid(z): the square of an approximate root is cheaper than a division.
            root = tl.rsqrt(1.0 + tl.exp2(z * -LOG2_E))
            y *= z * (root * root)
        target = y_ptr + token[:, None] * width + channel[None, :]
        mask = here[:, None] & real[None, :]
        tl.store(target, y.to(y_ptr.dtype.element_ty), mask=mask)

    if new_state_ptr is not None:
        # The new state may lie where the old one does: no warp stores before all have loaded.
        tl.debug_barrier()
        store_tile(new_state_ptr + batch * width * N, h, channel, real, N, 1, N, STATES)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dimension is contiguous, as the kernels need it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _in_float32(B: torch.Tensor, C: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of B and C: read by every block of channels, they are widened once."""
    batch, length, N = B.shape
    _, _, shape = scratch_shapes(batch, length, width, N)
    both = torch.empty(shape, dtype=torch.float32, device=B.device)
    both[0].copy_(B)
    both[1].copy_(C)
    return both[0], both[1]


def _states_before_chunks(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    dt_bias: torch.Tensor | None,
    state: torch.Tensor,
    new_state: torch.Tensor,
    chunk: int,
    options: dict[str, int],
) -> torch.Tensor:
    """Passes 1 and 2: fill `new_state`, return the states before the chunks [B, chunks, N, E]."""
    batch, length, width = x.shape
    N = A.shape[1]
    states_shape, sums_shape, _ = scratch_shapes(batch, length, width, N)
    states = torch.empty(states_shape, dtype=torch.float32, device=x.device)
    sums = torch.empty(sums_shape, dtype=torch.float32, device=x.device)
    chunks = states_shape[1]
    _chunk_states[(chunks, triton.cdiv(width, BLOCK_CHANNELS), batch)](
        x,
        dt,
        A,
        B,
        dt_bias,
        states,
        sums,
        length,
        chunk,
        width,
        *x.stride()[:2],
        *dt.stride()[:2],
        *A.stride(),
        *B.stride()[:2],
        **options,
    )
    _walk_chunks[(triton.cdiv(width, WALK_CHANNELS), N, batch)](
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
        CHANNELS=WALK_CHANNELS,
        num_warps=WALK_WARPS,
    )
    return states


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.selective_scan.selective_scan`."""
    batch, length, width = x.shape
    N = A.shape[1]
    x, dt, B, C = _rows(x), _rows(dt), _rows(B), _rows(C)
    z = None if z is None else _rows(z)
    D = None if D is None else D.contiguous()
    dt_bias = None if dt_bias is None else dt_bias.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    states = triton.next_power_of_2(N)
    options = {
        "N": N,
        "STATES": states,
        "CHANNELS": BLOCK_CHANNELS,
        "TOKENS": 1 if length == 1 else BLOCK_TOKENS,
        "num_warps": max(1, states // THREAD_STATES),
    }
    chunk = chunk_tokens(batch, length, width)
    new_state = new_like(state, in_place=chunk is None)
    if chunk is None:
        chunk, chunks, before = length, 1, state
        state_strides = (state.stride(0), 0, state.stride(1), state.stride(2))
    else:
        B, C = _in_float32(B, C, width)
        before = _states_before_chunks(x, dt, A, B, dt_bias, state, new_state, chunk, options)
        chunks = before.shape[1]
        state_strides = (before.stride(0), before.stride(1), before.stride(3), before.stride(2))
    _scan[(chunks, triton.cdiv(width, BLOCK_CHANNELS), batch)](
        x,
        dt,
        A,
        B,
        C,
        D,
        z,
        dt_bias,
        before,
        y,
        new_state if before is state else None,
        length,
        chunk,
        width,
        *x.stride()[:2],
        *dt.stride()[:2],
        *A.stride(),
        *B.stride()[:2],
        *C.stride()[:2],
        *((0, 0) if z is None else z.stride()[:2]),
        *state_strides,
        **options,
    )
    return y, new_state
