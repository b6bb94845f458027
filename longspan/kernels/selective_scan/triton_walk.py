"""The selective scan as one walk over all tokens: every exponential is computed once.

A warp holds the state of 8 channels, four lanes a channel, so that E / 8 warps of a layer can fill
the device without a cut into chunks; the sum over N is two exchanges between lanes. It reads 16
tokens at a time. A warp that is alone on its scheduler has nobody to hide its waiting, so the next
16 tokens are loaded, and their steps computed, beside the recurrence of these.

It rests on the layout that Triton gives a tile [tokens, N, channels] of one warp when no load
decides for it: channels over 8 lanes, N over 4, tokens in a thread.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.selective_scan.scratch import WALK_CHANNELS
from longspan.kernels.selective_scan.triton_tiles import (
    LOG2_E,
    load_channels,
    load_stored_rows,
    load_tile,
    row,
    silu,
    steps_of,
    store_tile,
)

# Loaded and computed together: 64 decays of a thread with N = 16. With 8 tokens the exchanges
# between lanes are waited for twice as often (docs/kernels.md).
BLOCK_TOKENS = 16
# Fewer would put tokens into different lanes.
MIN_STATES = 4


@triton.jit(do_not_specialize=["length"])
def _walk(
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
    stride_state,
    stride_state_n,
    N: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    channel = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, STATES)
    t = tl.arange(0, TOKENS)
    real = channel < width
    # An int64 loop: its offsets are added up, where those of an int32 one are multiplied out.
    length = length.to(tl.int64)
    x_ptr += batch * stride_x_batch
    dt_ptr += batch * stride_dt_batch
    B_ptr += batch * stride_B_batch
    C_ptr += batch * stride_C_batch
    y_ptr += batch * length * width

    A = load_tile(A_ptr, channel, real, stride_A, stride_A_state, N, STATES) * LOG2_E
    dt_bias = load_channels(dt_bias_ptr, channel, real)
    D = load_channels(D_ptr, channel, real)
    source = state_ptr + batch * stride_state_batch
    h = load_tile(source, channel, real, stride_state, stride_state_n, N, STATES)

    now = t.to(tl.int64)
    here = now < length
    x = load_stored_rows(x_ptr, now, stride_x, channel, here, real)
    B = load_stored_rows(B_ptr, now, stride_B, n, here, n < N)
    C = load_stored_rows(C_ptr, now, stride_C, n, here, n < N)
    if z_ptr is not None:
        z_ptr += batch * stride_z_batch
        z = load_stored_rows(z_ptr, now, stride_z, channel, here, real)
    dt = load_stored_rows(dt_ptr, now, stride_dt, channel, here, real)
    step = steps_of(dt, dt_bias, here, real)
    dt = load_stored_rows(dt_ptr, now + TOKENS, stride_dt, channel, now + TOKENS < length, real)
    for start in range(0, length, TOKENS):
        now = start + t
        # Steps are computed a block ahead, so their dt is loaded two blocks ahead.
        after, later = now + TOKENS, now + 2 * TOKENS
        here = after < length
        later_dt = load_stored_rows(dt_ptr, later, stride_dt, channel, later < length, real)
        after_x = load_stored_rows(x_ptr, after, stride_x, channel, here, real)
        if z_ptr is not None:
            after_z = load_stored_rows(z_ptr, after, stride_z, channel, here, real)
        after_B = load_stored_rows(B_ptr, after, stride_B, n, here, n < N)
        after_C = load_stored_rows(C_ptr, after, stride_C, n, here, n < N)
        after_step = steps_of(dt, dt_bias, here, real)

        wide_x = x.to(tl.float32)
        decays = tl.exp2(step[:, None, :] * A[None, :, :])
        inputs = (step * wide_x)[:, None, :] * B[:, :, None]
        states = tl.zeros([TOKENS, STATES, CHANNELS], dtype=tl.float32)
        for i in tl.static_range(TOKENS):
            h = row(decays, i, TOKENS) * h + row(inputs, i, TOKENS)
            states = tl.where((t == i)[:, None, None], h[None, :, :], states)
        y = tl.sum(states * C[:, :, None], axis=1) + D[None, :] * wide_x
        if z_ptr is not None:
            y *= silu(z.to(tl.float32))
            z = after_z
        target = y_ptr + now[:, None] * width + channel[None, :]
        mask = (now < length)[:, None] & real[None, :]
        tl.store(target, y.to(y_ptr.dtype.element_ty), mask=mask)
        x, B, C, dt, step = after_x, after_B, after_C, later_dt, after_step

    # The new state may lie where the old one does: no lane stores before all have loaded.
    tl.debug_barrier()
    store_tile(new_state_ptr + batch * width * N, h, channel, real, N, 1, N, STATES)


def walk(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    state: torch.Tensor,
    y: torch.Tensor,
    new_state: torch.Tensor,
) -> None:
    """Fill `y` and `new_state`; B and C are float32, and all but A and state contiguous in a row.

    See `longspan.kernels.selective_scan.selective_scan`.
    """
    batch, length, width = x.shape
    N = A.shape[1]
    _walk[(triton.cdiv(width, WALK_CHANNELS), batch)](
        x,
        dt,
        A,
        B,
        C,
        D,
        z,
        dt_bias,
        state,
        y,
        new_state,
        length,
        width,
        *x.stride()[:2],
        *dt.stride()[:2],
        *A.stride(),
        *B.stride()[:2],
        *C.stride()[:2],
        *((0, 0) if z is None else z.stride()[:2]),
        *state.stride(),
        N=N,
        STATES=max(MIN_STATES, triton.next_power_of_2(N)),
        CHANNELS=WALK_CHANNELS,
        TOKENS=BLOCK_TOKENS,
        num_warps=1,
    )
