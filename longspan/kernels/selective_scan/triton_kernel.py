"""The selective scan in Triton: softplus, decay, skip and gate fused with the recurrence.

A program holds the state of 32 channels as a tile [N, channels] and reads a few tokens at a time.
A thread owns a whole channel, so the sum over N needs no exchange between threads; a tile [tokens,
N, channels] has its tokens in a thread too, and `row` costs nothing. It all rests on the layout
that Triton gives a tile when no load decides for it.

Few tokens, or channels enough to fill the device: one pass, token after token. Channels enough to
fill it with four threads each: one walk (`triton_walk.py`). Otherwise three passes:
1. `_chunk_states`: each chunk's state from zero, and its sum of steps (decay exp(A sum)).
2. `_walk_chunks`: from chunk to chunk; leaves in each slot the state before that chunk.
3. `_scan`: each chunk again, from its right state, writing y.
The first two are in `triton_chunks.py`.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.device import scheduler_count
from longspan.kernels.donation import new_like
from longspan.kernels.selective_scan.scratch import choose_way, chunk_tokens
from longspan.kernels.selective_scan.triton_chunks import states_before_chunks
from longspan.kernels.selective_scan.triton_tiles import (
    LOG2_E,
    load_channels,
    load_rows,
    load_tile,
    row,
    silu,
    steps_of,
    store_tile,
)
from longspan.kernels.selective_scan.triton_walk import walk

# One thread a channel (see the module's docstring).
BLOCK_CHANNELS = 32
# Tokens loaded and computed together. Their decays are 64 registers of a thread if N = 16.
BLOCK_TOKENS = 4
# States of a channel that one thread holds: more are spread over warps.
THREAD_STATES = 16


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
        step = steps_of(dt, dt_bias, here, real)
        decays = tl.exp2(step[:, None, :] * A[None, :, :])
        inputs = (step * x)[:, None, :] * B[:, :, None]
        states = tl.zeros([TOKENS, STATES, CHANNELS], dtype=tl.float32)
        for i in tl.static_range(TOKENS):
            h = row(decays, i, TOKENS) * h + row(inputs, i, TOKENS)
            states = tl.where((t == i)[:, None, None], h[None, :, :], states)
        y = tl.sum(states * C[:, :, None], axis=1) + D[None, :] * x
        if z_ptr is not None:
            z = load_rows(z_ptr + batch * stride_z_batch, token, stride_z, channel, here, real)
            y *= silu(z)
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


def _in_float32(B: torch.Tensor, C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of B and C: read by every block of channels, they are widened once."""
    both = torch.empty((2, *B.shape), dtype=torch.float32, device=B.device)
    both[0].copy_(B)
    both[1].copy_(C)
    return both[0], both[1]


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
    way = choose_way(batch, length, width, N, scheduler_count(x.device))
    new_state = new_like(state, in_place=True)
    if way != "one pass":
        B, C = _in_float32(B, C)
    if way == "one walk":
        walk(x, dt, A, B, C, D, z, dt_bias, state, y, new_state)
        return y, new_state

    states = triton.next_power_of_2(N)
    options = {
        "N": N,
        "STATES": states,
        "CHANNELS": BLOCK_CHANNELS,
        "TOKENS": 1 if length == 1 else BLOCK_TOKENS,
        "num_warps": max(1, states // THREAD_STATES),
    }
    if way == "one pass":
        chunk, chunks, before = length, 1, state
        state_strides = (state.stride(0), 0, state.stride(1), state.stride(2))
    else:
        before = states_before_chunks(x, dt, A, B, dt_bias, state, new_state, options)
        chunk, chunks = chunk_tokens(length), before.shape[1]
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
