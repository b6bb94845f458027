"""RoPE in Triton: queries and keys in one launch; an angle is computed once for several heads.

Angles are fixed-point numbers: a frequency is so many 2^-64 turns a token, its product with the
position wraps at whole turns, and what is left is exact. float64 would do, but most GPUs
are slow at it.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl

# Pairs of channels that a program rotates at a time, over 4 warps.
BLOCK_PAIRS = 512
# Heads that share their tokens' angles in a program.
BLOCK_HEADS = 8
RADIANS = tl.constexpr(2 * math.pi / 2**32)


@triton.jit
def _rotate_heads(
    u_ptr,
    y_ptr,
    cos,
    sin,
    token,
    length,
    first,
    last,
    stride,
    stride_head,
    heads,
    P: tl.constexpr,
    DIMS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
):
    """Rotate heads first .. last-1 of one sequence's tokens."""
    pair = tl.arange(0, PAIRS)[None, :]
    low = 2 * pair if INTERLEAVED else pair
    high = 2 * pair + 1 if INTERLEAVED else pair + DIMS // 2
    inside = (token < length) & (pair < DIMS // 2)
    for head in range(first, last):
        u = u_ptr + token * stride + tl.cast(head, tl.int64) * stride_head
        y = y_ptr + (token * heads + head) * P
        a = tl.load(u + low, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(u + high, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + low, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=inside)
        tl.store(y + high, (b * cos + a * sin).to(y_ptr.dtype.element_ty), mask=inside)
        if DIMS < P:
            column = DIMS + tl.arange(0, REST)[None, :]
            real = (token < length) & (column < P)
            tl.store(y + column, tl.load(u + column, mask=real, other=0.0), mask=real)


@triton.jit(do_not_specialize=["length"])
def _rope(
    q_ptr,
    k_ptr,
    position_ptr,
    turns_ptr,
    q_out_ptr,
    k_out_ptr,
    length,
    stride_q_batch,
    stride_q,
    stride_q_head,
    stride_k_batch,
    stride_k,
    stride_k_head,
    H: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    DIMS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    batch = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * HEADS
    pair = tl.arange(0, PAIRS)[None, :]
    turns_per_token = tl.load(turns_ptr + pair, mask=pair < DIMS // 2, other=0)
    turns = (tl.load(position_ptr) + token) * turns_per_token
    # The upper half of the fraction, -1/2 .. 1/2 turns.
    angle = (turns >> 32).to(tl.float32) * RADIANS
    cos, sin = tl.cos(angle), tl.sin(angle)
    _rotate_heads(
        q_ptr + batch * stride_q_batch,
        q_out_ptr + batch * length * (H * P),
        cos,
        sin,
        token,
        length,
        first,
        tl.minimum(first + HEADS, H),
        stride_q,
        stride_q_head,
        H,
        P,
        DIMS,
        INTERLEAVED,
        PAIRS,
        REST,
    )
    # Heads are counted on from the queries' to the keys'.
    _rotate_heads(
        k_ptr + batch * stride_k_batch,
        k_out_ptr + batch * length * (G * P),
        cos,
        sin,
        token,
        length,
        tl.maximum(first - H, 0),
        tl.minimum(first + HEADS - H, G),
        stride_k,
        stride_k_head,
        G,
        P,
        DIMS,
        INTERLEAVED,
        PAIRS,
        REST,
    )


@cache
def _turns_per_token(half: int, base: float, device: torch.device) -> torch.Tensor:
    """The frequencies in 2^-64 turns a token, int64 [half]; more than 2^63 wrap to below zero."""
    turns = (base ** (-i / half) / (2 * math.pi) for i in range(half))
    fixed = (round(each % 1.0 * 2**64) for each in turns)
    return torch.tensor([(each + 2**63) % 2**64 - 2**63 for each in fixed], device=device)


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float,
    dims: int,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.rope.rope`."""
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    q, k = (each if each.stride(3) == 1 else each.contiguous() for each in (q, k))
    q_out, k_out = (
        torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (q, k)
    )
    pairs = triton.next_power_of_2(dims // 2)
    # In decoding every head has a program of its own.
    tokens, together = (1, 1) if length == 1 else (max(1, BLOCK_PAIRS // pairs), BLOCK_HEADS)
    grid = (triton.cdiv(length, tokens), triton.cdiv(heads + groups, together), batch)
    _rope[grid](
        q,
        k,
        position,
        _turns_per_token(dims // 2, base, q.device),
        q_out,
        k_out,
        length,
        *q.stride()[:3],
        *k.stride()[:3],
        H=heads,
        G=groups,
        P=width,
        DIMS=dims,
        INTERLEAVED=interleaved,
        TOKENS=tokens,
        HEADS=together,
        PAIRS=pairs,
        REST=triton.next_power_of_2(max(1, width - dims)),
        num_warps=1 if length == 1 else 4,
    )
    return q_out, k_out
