"""Conba in Triton: with a gain one program a head walks the tokens, K and x staying on chip.

While K stands still, x_{k+1} = (diag - K C) x_k + ..., and K C is a full matrix: no diagonal
parallel form exists, so a gain that is updated every c tokens takes the same walk, and saves the
update. Without a gain every state entry is a recurrence of its own; `triton_channels.py` has it.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.conba import Activation, ConbaState
from longspan.kernels.conba.triton_channels import squash, walk_channels
from longspan.kernels.donation import new_like

# Values of K, and of C, that a thread holds.
VALUES_PER_THREAD = 16


@triton.jit
def _updated(K, last, error, C, eta, k_max):
    """Equation (7)."""
    step = eta / (1.0 + tl.sum(last * last, axis=0))
    descent = tl.sum(C * error[None, :], axis=1)
    K += (step * descent)[:, None] * last[None, :]
    norm = tl.sqrt(tl.sum(tl.sum(K * K, axis=1), axis=0))
    return K * (k_max / tl.maximum(norm, k_max))


@triton.jit(do_not_specialize=["length", "eta", "k_max"])
def _walk_heads(
    s_ptr,
    a_ptr,
    u_ptr,
    r_ptr,
    w_ptr,
    C_ptr,
    D_ptr,
    x_ptr,
    delay_ptr,
    gain_ptr,
    error_ptr,
    position_ptr,
    y_ptr,
    new_x_ptr,
    new_delay_ptr,
    new_gain_ptr,
    new_error_ptr,
    length,
    eta,
    k_max,
    stride_s_batch,
    stride_s,
    stride_s_head,
    stride_a_batch,
    stride_a,
    stride_a_head,
    stride_u_batch,
    stride_u,
    stride_u_head,
    stride_r_batch,
    stride_r,
    stride_r_head,
    H: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    DELAY: tl.constexpr,
    EVERY: tl.constexpr,
    TANH: tl.constexpr,
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    slot = batch * H + head
    n = tl.arange(0, STATES)
    p = tl.arange(0, WIDTH)
    real = (n < N)[:, None] & (p < P)[None, :]
    s_ptr += batch * stride_s_batch + head * stride_s_head + n
    a_ptr += batch * stride_a_batch + head * stride_a_head + n
    u_ptr += batch * stride_u_batch + head * stride_u_head + p
    r_ptr += batch * stride_r_batch + head * stride_r_head + p
    y_ptr += (batch * length * H + head) * P + p
    delay_ptr += (batch * DELAY * H + head) * N + n
    new_delay_ptr += (batch * DELAY * H + head) * N + n

    w = tl.load(w_ptr + head * N + n, mask=n < N, other=0.0).to(tl.float32)
    now = 1.0 / (1.0 + tl.abs(w))
    then = w * now
    C_source = C_ptr + head * P * N + p[None, :] * N + n[:, None]
    C = tl.load(C_source, mask=real, other=0.0).to(tl.float32)
    D = tl.load(D_ptr + head * P + p, mask=p < P, other=0.0).to(tl.float32)
    cell = slot * N * P + n[:, None] * P + p[None, :]
    K = tl.load(gain_ptr + cell, mask=real, other=0.0)
    x = tl.load(x_ptr + slot * N + n, mask=n < N, other=0.0)
    error = tl.load(error_ptr + slot * P + p, mask=p < P, other=0.0)
    previous = tl.load(delay_ptr, mask=n < N, other=0.0)
    read = 0
    if EVERY > 1:
        read = (tl.load(position_ptr) % EVERY).to(tl.int32)

    s = tl.load(s_ptr, mask=n < N, other=0.0)
    a = tl.load(a_ptr, mask=n < N, other=0.0)
    u = tl.load(u_ptr, mask=p < P, other=0.0)
    r = tl.load(r_ptr, mask=p < P, other=0.0)
    for token in range(length):
        # The next token's loads start before this token's sums, which they would wait for.
        ahead = tl.minimum(token + 1, length - 1).to(tl.int64)
        next_s = tl.load(s_ptr + ahead * stride_s, mask=n < N, other=0.0)
        next_a = tl.load(a_ptr + ahead * stride_a, mask=n < N, other=0.0)
        next_u = tl.load(u_ptr + ahead * stride_u, mask=p < P, other=0.0)
        next_r = tl.load(r_ptr + ahead * stride_r, mask=p < P, other=0.0)
        if DELAY > 1:
            # `new_delay` is a ring whose slot of the last token is the last.
            place = (token - length % DELAY + DELAY) % DELAY * (H * N)
            source = delay_ptr + tl.minimum(token, DELAY - 1) * (H * N)
            old = tl.load(source, mask=(n < N) & (token < DELAY), other=0.0)
            own = tl.load(new_delay_ptr + place, mask=(n < N) & (token >= DELAY), other=0.0)
            previous = old + own
            tl.debug_barrier()
            tl.store(new_delay_ptr + place, x, mask=n < N)
            tl.debug_barrier()
        delayed = now * x + then * previous
        previous = x
        x = a * delayed + s.to(tl.float32) + tl.sum(K * error[None, :], axis=1)
        if TANH:
            x = squash(x)
        y = tl.sum(C * x[:, None], axis=0) + D * u.to(tl.float32)
        tl.store(y_ptr, y.to(y_ptr.dtype.element_ty), mask=p < P)
        y_ptr += H * P
        last = error
        error = r.to(tl.float32) - y
        read += 1
        if EVERY == 1:
            K = _updated(K, last, error, C, eta, k_max)
        elif read == EVERY:
            K = _updated(K, last, error, C, eta, k_max)
            read = 0
        s, a, u, r = next_s, next_a, next_u, next_r

    # The new state may lie where the old one does: no warp stores before all have loaded.
    tl.debug_barrier()
    tl.store(new_gain_ptr + cell, K, mask=real)
    tl.store(new_x_ptr + slot * N + n, x, mask=n < N)
    tl.store(new_error_ptr + slot * P + p, error, mask=p < P)
    if DELAY == 1:
        tl.store(new_delay_ptr, previous, mask=n < N)
    for kept in range(length, DELAY):
        rest = tl.load(delay_ptr + kept * (H * N), mask=n < N, other=0.0)
        tl.store(new_delay_ptr + (kept - length) * (H * N), rest, mask=n < N)


def conba(
    s: torch.Tensor,
    a: torch.Tensor,
    u: torch.Tensor,
    r: torch.Tensor | None,
    w_tau: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    *,
    state: ConbaState,
    activation: Activation,
    update_every: int | None,
    eta: float,
    k_max: float,
) -> tuple[torch.Tensor, ConbaState]:
    """See `longspan.kernels.conba.conba`."""
    s, a, u = _rows(s), _rows(a), _rows(u)
    tanh = activation == "tanh"
    if state.gain is None or state.error is None or r is None or update_every is None:
        return walk_channels(s, a, u, w_tau, C, D, state=state, tanh=tanh)

    batch, length, H, N = s.shape
    P, r, delay = u.shape[3], _rows(r), state.delay.shape[1]
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    before = (state.x, state.delay, state.gain, state.error)
    # A longer delay is a ring in its new memory, while the old one is read.
    after = [new_like(each, in_place=each is not state.delay or delay == 1) for each in before]
    states, width = triton.next_power_of_2(N), triton.next_power_of_2(P)
    _walk_heads[(H, batch)](
        s,
        a,
        u,
        r,
        w_tau.contiguous(),
        C.contiguous(),
        D.contiguous(),
        *(each.contiguous() for each in before),
        state.position,
        y,
        *after,
        length,
        eta,
        k_max,
        *s.stride()[:3],
        *a.stride()[:3],
        *u.stride()[:3],
        *r.stride()[:3],
        H=H,
        N=N,
        P=P,
        DELAY=delay,
        EVERY=update_every,
        TANH=tanh,
        STATES=states,
        WIDTH=width,
        num_warps=min(32, max(1, states * width // (32 * VALUES_PER_THREAD))),
        # Loads are fetched ahead by hand; the delay's must not pass the stores before them.
        num_stages=1,
    )
    x, recent, gain, error = after
    position = None if state.position is None else state.position + length
    return y, ConbaState(x=x, delay=recent, gain=gain, error=error, position=position)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dimension is contiguous, as the kernels need it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
