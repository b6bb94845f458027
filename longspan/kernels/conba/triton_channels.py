"""Conba without a gain, in Triton: H N recurrences of their own, then one product with C.

    x_{k+1} = f(a_k (x_k + w x_{k-T}) / (1 + |w|) + s_k)

For T = 1 and f the identity, chunks of tokens are read side by side in three launches: what each
makes of (0, 0), (1, 0) and (0, 1), its map; a walk over the maps; and every chunk again, from its
right start. Else one launch walks all tokens.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.conba import ConbaState, scratch

# A thread owns a channel, so no sum is exchanged.
CHANNELS = 64


@triton.jit
def squash(x):
    """tanh(x), without overflow: exp may be infinite, then this is 1."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit(do_not_specialize=["length"])
def _map_chunks(
    s_ptr,
    a_ptr,
    w_ptr,
    maps_ptr,
    length,
    chunks,
    stride_s_batch,
    stride_s,
    stride_s_head,
    stride_a_batch,
    stride_a,
    stride_a_head,
    N: tl.constexpr,
    ALL: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Store what a chunk makes of (0, 0) with s, and of (1, 0) and (0, 1) without."""
    channel = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    index = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    real = channel < ALL
    first = index * CHUNK
    s_ptr += batch * stride_s_batch + channel // N * stride_s_head + channel % N + first * stride_s
    a_ptr += batch * stride_a_batch + channel // N * stride_a_head + channel % N + first * stride_a
    w = tl.load(w_ptr + channel, mask=real, other=0.0).to(tl.float32)
    now = 1.0 / (1.0 + tl.abs(w))
    then = w * now

    x, past_x = tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    one, past_one = tl.full([CHANNELS], 1.0, tl.float32), tl.zeros([CHANNELS], tl.float32)
    two, past_two = tl.zeros([CHANNELS], tl.float32), tl.full([CHANNELS], 1.0, tl.float32)
    for token in range(tl.minimum(length - first, CHUNK).to(tl.int32)):
        t = tl.cast(token, tl.int64)
        s = tl.load(s_ptr + t * stride_s, mask=real, other=0.0).to(tl.float32)
        a = tl.load(a_ptr + t * stride_a, mask=real, other=0.0)
        x, past_x = a * (now * x + then * past_x) + s, x
        one, past_one = a * (now * one + then * past_one), one
        two, past_two = a * (now * two + then * past_two), two
    maps_ptr += (batch * chunks + index) * 6 * ALL + channel
    tl.store(maps_ptr, x, mask=real)
    tl.store(maps_ptr + ALL, past_x, mask=real)
    tl.store(maps_ptr + 2 * ALL, one, mask=real)
    tl.store(maps_ptr + 3 * ALL, past_one, mask=real)
    tl.store(maps_ptr + 4 * ALL, two, mask=real)
    tl.store(maps_ptr + 5 * ALL, past_two, mask=real)


@triton.jit(do_not_specialize=["chunks"])
def _join_chunks(
    x_ptr,
    delay_ptr,
    maps_ptr,
    starts_ptr,
    chunks,
    ALL: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Store the two states before each chunk."""
    channel = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    real = channel < ALL
    x = tl.load(x_ptr + batch * ALL + channel, mask=real, other=0.0)
    past = tl.load(delay_ptr + batch * ALL + channel, mask=real, other=0.0)
    for index in range(chunks):
        slot = batch * chunks + index
        tl.store(starts_ptr + slot * 2 * ALL + channel, x, mask=real)
        tl.store(starts_ptr + (slot * 2 + 1) * ALL + channel, past, mask=real)
        source = maps_ptr + slot * 6 * ALL + channel
        own = tl.load(source, mask=real, other=0.0)
        past_own = tl.load(source + ALL, mask=real, other=0.0)
        one = tl.load(source + 2 * ALL, mask=real, other=0.0)
        past_one = tl.load(source + 3 * ALL, mask=real, other=0.0)
        two = tl.load(source + 4 * ALL, mask=real, other=0.0)
        past_two = tl.load(source + 5 * ALL, mask=real, other=0.0)
        x, past = own + one * x + two * past, past_own + past_one * x + past_two * past


@triton.jit(do_not_specialize=["length"])
def _walk_chunks(
    s_ptr,
    a_ptr,
    w_ptr,
    starts_ptr,
    delay_ptr,
    states_ptr,
    length,
    chunk,
    chunks,
    stride_s_batch,
    stride_s,
    stride_s_head,
    stride_a_batch,
    stride_a,
    stride_a_head,
    N: tl.constexpr,
    ALL: tl.constexpr,
    DELAY: tl.constexpr,
    TANH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Store x after each token of a chunk; with a delay above 1 the chunk is all tokens."""
    channel = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    index = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    real = channel < ALL
    first = index * chunk
    s_ptr += batch * stride_s_batch + channel // N * stride_s_head + channel % N + first * stride_s
    a_ptr += batch * stride_a_batch + channel // N * stride_a_head + channel % N + first * stride_a
    states_ptr += (batch * length + first) * ALL + channel
    delay_ptr += batch * DELAY * ALL + channel
    starts_ptr += (batch * chunks + index) * 2 * ALL + channel
    w = tl.load(w_ptr + channel, mask=real, other=0.0).to(tl.float32)
    now = 1.0 / (1.0 + tl.abs(w))
    then = w * now
    x = tl.load(starts_ptr, mask=real, other=0.0)
    past = tl.load(starts_ptr + ALL, mask=real, other=0.0)
    for token in range(tl.minimum(length - first, chunk).to(tl.int32)):
        t = tl.cast(token, tl.int64)
        s = tl.load(s_ptr + t * stride_s, mask=real, other=0.0).to(tl.float32)
        a = tl.load(a_ptr + t * stride_a, mask=real, other=0.0)
        if DELAY > 1:
            # The states before the call, then the first of this call, then those stored below.
            source = delay_ptr + tl.minimum(token, DELAY - 1) * ALL
            past = tl.load(source, mask=real & (token < DELAY), other=0.0)
            if token == DELAY:
                past = tl.load(starts_ptr, mask=real, other=0.0)
            if token > DELAY:
                past = tl.load(states_ptr + (t - DELAY - 1) * ALL, mask=real, other=0.0)
        x, past = a * (now * x + then * past) + s, x
        if TANH:
            x = squash(x)
        tl.store(states_ptr + t * ALL, x, mask=real)
        if DELAY > 1:
            tl.debug_barrier()


def walk_channels(
    s: torch.Tensor,
    a: torch.Tensor,
    u: torch.Tensor,
    w_tau: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    *,
    state: ConbaState,
    tanh: bool,
) -> tuple[torch.Tensor, ConbaState]:
    """`conba` without a gain; the last dimensions of s and a are contiguous."""
    batch, length, H, N = s.shape
    delay = state.delay.shape[1]
    chunks = scratch.chunk_count(length, delay=delay, linear=not tanh)
    blocks = triton.cdiv(H * N, CHANNELS)
    sizes = {"ALL": H * N, "CHANNELS": CHANNELS, "num_warps": CHANNELS // 32, "num_stages": 1}
    strides = (*s.stride()[:3], *a.stride()[:3])
    w_tau = w_tau.contiguous()
    states = torch.empty(s.shape, dtype=torch.float32, device=s.device)
    starts = torch.stack([state.x, state.delay[:, -1]], dim=1)
    if chunks > 1:
        shape = (batch, chunks, scratch.MAP_VALUES, H, N)
        maps = torch.empty(shape, dtype=torch.float32, device=s.device)
        starts = torch.empty((batch, chunks, 2, H, N), dtype=torch.float32, device=s.device)
        _map_chunks[(blocks, chunks, batch)](
            s, a, w_tau, maps, length, chunks, *strides, N=N, CHUNK=scratch.CHUNK_TOKENS, **sizes
        )
        _join_chunks[(blocks, batch)](
            state.x.contiguous(), state.delay.contiguous(), maps, starts, chunks, **sizes
        )
        del maps
    _walk_chunks[(blocks, chunks, batch)](
        s,
        a,
        w_tau,
        starts,
        state.delay.contiguous(),
        states,
        length,
        scratch.CHUNK_TOKENS if chunks > 1 else length,
        chunks,
        *strides,
        N=N,
        DELAY=delay,
        TANH=tanh,
        **sizes,
    )
    del starts
    outputs = _outputs(states, C.float())
    outputs += D.float() * u
    recent = states[:, max(0, length - 1 - delay) : -1]
    before = torch.cat([state.delay, state.x[:, None], recent], dim=1)
    after = ConbaState(x=states[:, -1].clone(), delay=before[:, -delay:].contiguous())
    # einsum's result is not contiguous, and the norm reads rows.
    return u.new_empty(u.shape).copy_(outputs), after


def _outputs(states: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """C x of each token: [B, L, H, P] of states [B, L, H, N] and C [H, P, N].

    Of one token without cuBLAS, which would make a workspace for the stream that records a step.
    """
    if states.shape[1] == 1:
        return (states[:, :, :, None] * C).sum(dim=-1)
    return torch.einsum("blhn,hpn->blhp", states, C)
