"""Causal depthwise convolution in Triton: taps, bias, SiLU and the new tail in one launch.

A program computes a tile of tokens by channels. It reads each input K times, once a tap; all
but the first reading come from the L1 cache, as the rows of a tile overlap.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.donation import new_like

# 64 bf16 channels are one cache line. Fewer channels than threads let each thread read its taps for
# itself; with 128 channels the compiler passes them through shared memory at every tap.
BLOCK_CHANNELS = 64
# 32 x 64 float32 sums over 4 warps are 16 registers a thread, so many programs share a core.
BLOCK_TOKENS = 32


@triton.jit
def _load_inputs(
    x_ptr, tail_ptr, row, channel, inside, stride_x, stride_tail_token, stride_tail, K: tl.constexpr
):
    """Row `row` of the tail followed by x: rows below K-1 are the tail's."""
    x = tl.load(
        x_ptr + (row - (K - 1)) * stride_x + channel, mask=inside & (row >= K - 1), other=0.0
    )
    if K > 1:
        tail = tl.load(
            tail_ptr + row * stride_tail_token + channel * stride_tail,
            mask=inside & (row < K - 1),
            other=0.0,
        )
        x = tl.where(row < K - 1, tail.to(x.dtype), x)
    return x


@triton.jit(do_not_specialize=["length"])
def _causal_conv(
    x_ptr,
    weight_ptr,
    bias_ptr,
    tail_ptr,
    y_ptr,
    new_tail_ptr,
    length,
    width,
    stride_x_batch,
    stride_x,
    stride_weight,
    stride_tap,
    stride_tail_batch,
    stride_tail_token,
    stride_tail,
    K: tl.constexpr,
    TAIL: tl.constexpr,
    SILU: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * TOKENS
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    batch = tl.program_id(2).to(tl.int64)
    token = first + tl.arange(0, TOKENS)[:, None]
    real = channel < width
    inside = (token < length) & real
    x_ptr += batch * stride_x_batch
    tail_ptr += batch * stride_tail_batch
    y_ptr += batch * length * width

    y = tl.zeros([TOKENS, CHANNELS], dtype=tl.float32)
    for j in tl.static_range(K):
        x = _load_inputs(
            x_ptr,
            tail_ptr,
            token + j,
            channel,
            inside,
            stride_x,
            stride_tail_token,
            stride_tail,
            K,
        )
        weight = tl.load(
            weight_ptr + channel * stride_weight + j * stride_tap, mask=real, other=0.0
        )
        y += x.to(tl.float32) * weight.to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + channel, mask=real, other=0.0).to(tl.float32)
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(y_ptr + token * width + channel, y.to(y_ptr.dtype.element_ty), mask=inside)

    # Nested, as K is known when compiling and the program's place is not.
    if K > 1:  # noqa: SIM102
        if first == 0:
            row = tl.arange(0, TAIL)[:, None]
            kept = (row < K - 1) & real
            tail = _load_inputs(
                x_ptr,
                tail_ptr,
                row.to(tl.int64) + length,
                channel,
                kept,
                stride_x,
                stride_tail_token,
                stride_tail,
                K,
            )
            target = new_tail_ptr + (batch * (K - 1) + row) * width + channel
            # The new tail may lie where the old one does: no warp stores before all have loaded.
            tl.debug_barrier()
            tl.store(target, tail.to(new_tail_ptr.dtype.element_ty), mask=kept)


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.causal_conv.causal_conv`."""
    batch, length, width = x.shape
    taps = weight.shape[2]
    if x.stride(2) != 1:
        x = x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    # Of one token, no second program reads the tail.
    new_tail = new_like(tail, in_place=length == 1)
    tokens = 1 if length == 1 else BLOCK_TOKENS
    grid = (triton.cdiv(length, tokens), triton.cdiv(width, BLOCK_CHANNELS), batch)
    _causal_conv[grid](
        x,
        weight,
        None if bias is None else bias.contiguous(),
        tail,
        y,
        new_tail,
        length,
        width,
        x.stride(0),
        x.stride(1),
        weight.stride(0),
        weight.stride(2),
        tail.stride(0),
        tail.stride(1),
        tail.stride(2),
        K=taps,
        TAIL=triton.next_power_of_2(max(1, taps - 1)),
        SILU=activation == "silu",
        TOKENS=tokens,
        CHANNELS=BLOCK_CHANNELS,
        num_warps=4,
    )
    return y, new_tail
