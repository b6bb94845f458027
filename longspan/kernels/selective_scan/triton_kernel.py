"""The selective scan in Triton: softplus, decay, skip and gate fused with the recurrence.

A program holds the state of a block of channels as a tile [N, channels]. A thread owns a whole
channel, so the sum over N needs no exchange between threads.

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

# 32 channels a warp: one thread a channel (see the module's docstring).
BLOCK_CHANNELS = 64
NUM_WARPS = 2
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _step(dt_ptr, dt_bias, real):
    """softplus(dt + bias), exact also where exp(dt + bias) is far below one."""
    v = tl.load(dt_ptr, mask=real, other=0.0).to(tl.float32) + dt_bias
    u = tl.exp(tl.minimum(v, 20.0))
    w = 1.0 + u
    # log(w) u / (w - 1) undoes the rounding of 1 + u: log1p, which the interpreter lacks.
    log1p = tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
    return tl.where(real, tl.where(v > 20.0, v, log1p), 0.0)


@triton.jit
def _load_channels(ptr, channel, real):
    """Values of one parameter vector, zeros where it was not given."""
    values = tl.zeros(channel.shape, dtype=tl.float32)
    if ptr is not None:
        values = tl.load(ptr + channel, mask=real, other=0.0).to(tl.float32)
    return values


@triton.jit
def _load_tile(ptr, channel, real, stride, stride_n, N: tl.constexpr, STATES: tl.constexpr):
    """A tile [N, channels], loaded row by row, zeros around it.

    One load of the whole tile would make the compiler spread it over threads for wide accesses,
    and exchange values through shared memory at every token. The selects vanish: a thread's n are
    constants.
    """
    n = tl.arange(0, STATES)[:, None]
    tile = tl.zeros([STATES, channel.shape[0]], dtype=tl.float32)
    for i in tl.static_range(N):
        row = tl.load(ptr + channel * stride + i * stride_n, mask=real, other=0.0)
        tile = tl.where(n == i, row.to(tl.float32)[None, :], tile)
    return tile


@triton.jit
def _store_tile(ptr, tile, channel, real, stride, stride_n, N: tl.constexpr, STATES: tl.constexpr):
    """Store a tile [N, channels] row by row, for the reason that `_load_tile` gives."""
    n = tl.arange(0, STATES)[:, None]
    for i in tl.static_range(N):
        row = tl.sum(tl.where(n == i, tile, 0.0), axis=0)
        tl.store(ptr + channel * stride + i * stride_n, row, mask=real)


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
):
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    index = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, STATES)
    real = channel < width
    x_ptr += batch * stride_x_batch + channel
    dt_ptr += batch * stride_dt_batch + channel
    B_ptr += batch * stride_B_batch + n

    A = _load_tile(A_ptr, channel, real, stride_A, stride_A_state, N, STATES) * LOG2_E
    dt_bias = _load_channels(dt_bias_ptr, channel, real)
    h = tl.zeros([STATES, CHANNELS], dtype=tl.float32)
    steps = tl.zeros([CHANNELS], dtype=tl.float32)
    first = index * chunk
    for t in range(first, tl.minimum(first + chunk, length)):
        step = _step(dt_ptr + t * stride_dt, dt_bias, real)
        x = tl.load(x_ptr + t * stride_x, mask=real, other=0.0).to(tl.float32)
        B = tl.load(B_ptr + t * stride_B, mask=n < N, other=0.0).to(tl.float32)
        h = tl.exp2(step[None, :] * A) * h + B[:, None] * (step * x)[None, :]
        steps += step

    slot = batch * tl.num_programs(0) + index
    _store_tile(states_ptr + slot * N * width, h, channel, real, 1, width, N, STATES)
    tl.store(sums_ptr + slot * width + channel, steps, mask=real)


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
):
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    index = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, STATES)
    real = channel < width
    x_ptr += batch * stride_x_batch + channel
    dt_ptr += batch * stride_dt_batch + channel
    B_ptr += batch * stride_B_batch + n
    C_ptr += batch * stride_C_batch + n
    y_ptr += batch * length * width + channel
    state_ptr += batch * stride_state_batch + index * stride_state_chunk

    A = _load_tile(A_ptr, channel, real, stride_A, stride_A_state, N, STATES) * LOG2_E
    dt_bias = _load_channels(dt_bias_ptr, channel, real)
    D = _load_channels(D_ptr, channel, real)
    h = _load_tile(state_ptr, channel, real, stride_state, stride_state_n, N, STATES)
    first = index * chunk
    for t in range(first, tl.minimum(first + chunk, length)):
        step = _step(dt_ptr + t * stride_dt, dt_bias, real)
        x = tl.load(x_ptr + t * stride_x, mask=real, other=0.0).to(tl.float32)
        B = tl.load(B_ptr + t * stride_B, mask=n < N, other=0.0).to(tl.float32)
        C = tl.load(C_ptr + t * stride_C, mask=n < N, other=0.0).to(tl.float32)
        h = tl.exp2(step[None, :] * A) * h + B[:, None] * (step * x)[None, :]
        y = tl.sum(h * C[:, None], axis=0) + D * x
        if z_ptr is not None:
            z_row = z_ptr + batch * stride_z_batch + t * stride_z + channel
            z = tl.load(z_row, mask=real, other=0.0).to(tl.float32)
            y *= z * tl.sigmoid(z)
        tl.store(y_ptr + t * width, y.to(y_ptr.dtype.element_ty), mask=real)

    if new_state_ptr is not None:
        # The new state may lie where the old one does: no warp stores before all have loaded.
        tl.debug_barrier()
        _store_tile(new_state_ptr + batch * width * N, h, channel, real, N, 1, N, STATES)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dimension is contiguous, as the kernels need it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _states_before_chunks(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    dt_bias: torch.Tensor | None,
    state: torch.Tensor,
    new_state: torch.Tensor,
    chunk: int,
) -> torch.Tensor:
    """Passes 1 and 2: fill `new_state`, return the states before the chunks [B, chunks, N, E]."""
    batch, length, width = x.shape
    N = A.shape[1]
    states_shape, sums_shape = scratch_shapes(batch, length, width, N)
    states = torch.empty(states_shape, dtype=torch.float32, device=x.device)
    sums = torch.empty(sums_shape, dtype=torch.float32, device=x.device)
    chunks = states_shape[1]
    blocks = triton.cdiv(width, BLOCK_CHANNELS)
    _chunk_states[(chunks, blocks, batch)](
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
        N=N,
        STATES=triton.next_power_of_2(N),
        CHANNELS=BLOCK_CHANNELS,
        num_warps=NUM_WARPS,
    )
    _walk_chunks[(blocks, N, batch)](
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
    chunk = chunk_tokens(batch, length, width)
    new_state = new_like(state, in_place=chunk is None)
    if chunk is None:
        chunk, chunks, before = length, 1, state
        state_strides = (state.stride(0), 0, state.stride(1), state.stride(2))
    else:
        before = _states_before_chunks(x, dt, A, B, dt_bias, state, new_state, chunk)
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
        N=N,
        STATES=triton.next_power_of_2(N),
        CHANNELS=BLOCK_CHANNELS,
        num_warps=NUM_WARPS,
    )
    return y, new_state
