"""The selective scan of Mamba with a backward pass, as two Triton kernels: what training needs.

longspan itself only reads, so its own kernels have no gradients. Same arguments and results as
`longspan.kernels.selective_scan`, except that nothing is optional and that the final state is
detached: gradients stop at the borders of a segment.

    y, state = differentiable_scan(x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, state=state)

A program owns BLOCK channels of one row and walks along the tokens with h [BLOCK, N] in registers.
The forward pass stores h once every CHUNK tokens; the backward pass goes through the chunks from
the last to the first, computes each again into a scratch that stays in the cache, and walks back.
"""

# Triton kernels carry no types that mypy knows.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["differentiable_scan"]

BLOCK = 16
CHUNK = 32


@triton.jit
def _softplus(v):
    """log(1 + exp(v)), exact for very negative v too: memory over 100,000 tokens lives there."""
    u = tl.exp(tl.minimum(v, 20.0))
    small = u * (1.0 - u * (0.5 - u * (1.0 / 3.0)))
    return tl.where(v > 20.0, v, tl.where(u < 0.01, small, tl.log(1.0 + u)))


@triton.jit
def _sigmoid(v):
    return 1.0 / (1.0 + tl.exp(-v))


@triton.jit
def _forward_kernel(
    x, dt, A, B, C, D, z, dt_bias, state, y, last, saved,
    L, E,
    N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Walk forward; `saved` [B, chunks, E, N] takes h before each chunk."""
    row = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    inside = e < E
    inside_en = inside[:, None] & (n[None, :] < N)
    en = e[:, None] * N + n[None, :]
    a = tl.load(A + en, mask=inside_en, other=0.0)
    skip = tl.load(D + e, mask=inside, other=0.0)
    bias = tl.load(dt_bias + e, mask=inside, other=0.0)
    h = tl.load(state + row * E * N + en, mask=inside_en, other=0.0)
    chunks = tl.cdiv(L, CHUNK)
    for chunk in range(chunks):
        tl.store(saved + (row * chunks + chunk) * E * N + en, h, mask=inside_en)
        for t in range(chunk * CHUNK, tl.minimum(L, chunk * CHUNK + CHUNK)):
            token = row * L + t
            x_t = tl.load(x + token * E + e, mask=inside, other=0.0).to(tl.float32)
            z_t = tl.load(z + token * E + e, mask=inside, other=0.0).to(tl.float32)
            dt_t = tl.load(dt + token * E + e, mask=inside, other=0.0).to(tl.float32)
            step = _softplus(dt_t + bias)
            b_t = tl.load(B + token * N + n).to(tl.float32)
            c_t = tl.load(C + token * N + n).to(tl.float32)
            h = tl.exp(step[:, None] * a) * h + (step * x_t)[:, None] * b_t[None, :]
            y_t = tl.sum(h * c_t[None, :], axis=1) + skip * x_t
            tl.store(y + token * E + e, y_t * z_t * _sigmoid(z_t), mask=inside)
    tl.store(last + row * E * N + en, h, mask=inside_en)


@triton.jit
def _backward_kernel(
    x, dt, A, B, C, D, z, dt_bias, dy, saved, scratch,
    dx, ddt, dA, dB, dC, dD, dz,
    L, E, rows,
    N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Walk back; dA, dD are per row, dB, dC per block of channels: the caller adds them up."""
    row = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    inside = e < E
    inside_en = inside[:, None] & (n[None, :] < N)
    en = e[:, None] * N + n[None, :]
    local = tl.arange(0, BLOCK)[:, None] * N + n[None, :]
    scratch += (block * rows + row) * CHUNK * BLOCK * N
    a = tl.load(A + en, mask=inside_en, other=0.0)
    skip = tl.load(D + e, mask=inside, other=0.0)
    bias = tl.load(dt_bias + e, mask=inside, other=0.0)
    dh = tl.zeros([BLOCK, N], dtype=tl.float32)
    da = tl.zeros([BLOCK, N], dtype=tl.float32)
    dskip = tl.zeros([BLOCK], dtype=tl.float32)
    chunks = tl.cdiv(L, CHUNK)
    for back in range(chunks):
        chunk = chunks - 1 - back
        start = chunk * CHUNK
        length = tl.minimum(L - start, CHUNK)
        h = tl.load(saved + (row * chunks + chunk) * E * N + en, mask=inside_en, other=0.0)
        for i in range(length):
            tl.store(scratch + i * BLOCK * N + local, h)
            token = row * L + start + i
            x_t = tl.load(x + token * E + e, mask=inside, other=0.0).to(tl.float32)
            dt_t = tl.load(dt + token * E + e, mask=inside, other=0.0).to(tl.float32)
            step = _softplus(dt_t + bias)
            b_t = tl.load(B + token * N + n).to(tl.float32)
            h = tl.exp(step[:, None] * a) * h + (step * x_t)[:, None] * b_t[None, :]
        tl.debug_barrier()
        for j in range(length):
            i = length - 1 - j
            token = row * L + start + i
            before = tl.load(scratch + i * BLOCK * N + local)
            x_t = tl.load(x + token * E + e, mask=inside, other=0.0).to(tl.float32)
            z_t = tl.load(z + token * E + e, mask=inside, other=0.0).to(tl.float32)
            raw = tl.load(dt + token * E + e, mask=inside, other=0.0).to(tl.float32) + bias
            step = _softplus(raw)
            b_t = tl.load(B + token * N + n).to(tl.float32)
            c_t = tl.load(C + token * N + n).to(tl.float32)
            grad = tl.load(dy + token * E + e, mask=inside, other=0.0).to(tl.float32)

            decay = tl.exp(step[:, None] * a)
            h = decay * before + (step * x_t)[:, None] * b_t[None, :]
            y_t = tl.sum(h * c_t[None, :], axis=1) + skip * x_t
            gate = _sigmoid(z_t)
            tl.store(
                dz + token * E + e, grad * y_t * gate * (1.0 + z_t * (1.0 - gate)), mask=inside
            )
            grad *= z_t * gate
            dskip += grad * x_t
            dh += grad[:, None] * c_t[None, :]
            forgotten = dh * before * decay
            da += forgotten * step[:, None]
            written = tl.sum(dh * b_t[None, :], axis=1)
            dstep = tl.sum(forgotten * a, axis=1) + written * x_t
            tl.store(dx + token * E + e, grad * skip + written * step, mask=inside)
            tl.store(ddt + token * E + e, dstep * _sigmoid(raw), mask=inside)
            part = ((block * rows + row) * L + start + i) * N + n
            tl.store(dC + part, tl.sum(grad[:, None] * h, axis=0))
            tl.store(dB + part, tl.sum(dh * (step * x_t)[:, None], axis=0))
            dh *= decay
        tl.debug_barrier()
    tl.store(dA + row * E * N + en, da, mask=inside_en)
    tl.store(dD + row * E + e, dskip, mask=inside)


class _Scan(torch.autograd.Function):
    """The two kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor,
        z: torch.Tensor,
        dt_bias: torch.Tensor,
        state: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, length, width = x.shape
        states = A.shape[1]
        inputs = tuple(tensor.contiguous() for tensor in (x, dt, A, B, C, D, z, dt_bias))
        state = state.contiguous()
        y, last = torch.empty_like(inputs[0]), torch.empty_like(state)
        saved = state.new_empty(rows, triton.cdiv(length, CHUNK), width, states)
        _forward_kernel[(triton.cdiv(width, BLOCK), rows)](
            *inputs, state, y, last, saved, length, width,
            N=states, BLOCK=BLOCK, CHUNK=CHUNK, num_warps=1,
        )  # fmt: skip
        ctx.save_for_backward(*inputs, saved)
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, saved = ctx.saved_tensors
        x, dt, A, B, C, _, z, _ = inputs
        rows, length, width = x.shape
        states = A.shape[1]
        blocks = triton.cdiv(width, BLOCK)
        dx, ddt, dz = torch.empty_like(x), torch.empty_like(dt), torch.empty_like(z)
        dA, dD = A.new_empty(rows, width, states), A.new_empty(rows, width)
        dB, dC = A.new_empty(blocks, *B.shape), A.new_empty(blocks, *C.shape)
        scratch = A.new_empty(blocks, rows, CHUNK, BLOCK, states)
        _backward_kernel[(blocks, rows)](
            *inputs, grads[0].contiguous(), saved, scratch,
            dx, ddt, dA, dB, dC, dD, dz, length, width, rows,
            N=states, BLOCK=BLOCK, CHUNK=CHUNK, num_warps=1,
        )  # fmt: skip
        return (
            dx, ddt, dA.sum(0), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD.sum(0), dz,
            ddt.sum((0, 1), dtype=torch.float32), None,
        )  # fmt: skip


def differentiable_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor,
    z: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the selective scan over a segment, with gradients for everything but `state`.

    Args:
        x: float [B, L, E], the convolved input.
        dt: float [B, L, E], before bias and softplus.
        A: float32 [E, N], negative; N a power of two.
        B: float [B, L, N].
        C: float [B, L, N].
        D: float32 [E], the skip.
        z: float [B, L, E], the gate before SiLU.
        dt_bias: float32 [E].
        state: float32 [B, E, N], h before the first token.

    Returns:
        y, dtype of x [B, L, E], and h after the last token, float32 [B, E, N], detached.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _Scan.apply(x, dt, A, B, C, D, z, dt_bias, state)  # type: ignore[no-untyped-call]
    return result
