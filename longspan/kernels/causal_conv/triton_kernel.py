"""Causal depthwise convolution in Triton: taps, bias, SiLU and the new tail in one launch.

A program walks down a block of tokens with the last K-1 inputs of its channels and their taps in
registers, so that it reads each input once. It loads several rows before it computes the first,
which keeps enough of them on their way.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations; its tuples grow.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.donation import new_like
from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch

# Over 2 warps four channels a thread: 8 or 16 bytes an access, and some 70 registers.
BLOCK_CHANNELS = 256
# The K-1 rows before a block are read twice, and its taps once.
BLOCK_TOKENS = 32
BLOCK_ROWS = 8
# Of a single token, more and smaller programs wait less.
ONE_TOKEN_CHANNELS = 64


@triton.jit
def _load_input(
    x_ptr, tail_ptr, row, channel, real, stride_x, stride_tail_token, stride_tail, K: tl.constexpr
):
    """Row `row` of the tail followed by x: rows below K-1 are the tail's."""
    if row < K - 1:
        tail = tl.load(
            tail_ptr + row * stride_tail_token + channel * stride_tail, mask=real, other=0.0
        )
        x = tail.to(x_ptr.dtype.element_ty)
    else:
        x = tl.load(x_ptr + (row - (K - 1)) * stride_x + channel, mask=real, other=0.0)
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
    SILU: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    first = tl.program_id(0).to(tl.int64) * TOKENS
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(2).to(tl.int64)
    real = channel < width
    x_ptr += batch * stride_x_batch
    tail_ptr += batch * stride_tail_batch
    y_ptr += batch * length * width + channel

    weights = ()
    for j in tl.static_range(K):
        weight_row = weight_ptr + channel * stride_weight + j * stride_tap
        weights = weights + (tl.load(weight_row, mask=real, other=0.0).to(tl.float32),)
    bias = tl.zeros([CHANNELS], dtype=tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, mask=real, other=0.0).to(tl.float32)
    wait_for_last_launch(OVERLAP)
    before = ()
    for j in tl.static_range(K - 1):
        row = _load_input(
            x_ptr,
            tail_ptr,
            first + j,
            channel,
            real,
            stride_x,
            stride_tail_token,
            stride_tail,
            K,
        )
        before = before + (row,)

    for start in range(first, tl.minimum(first + TOKENS, length), ROWS):
        token = tl.cast(start, tl.int64)
        rows = before
        for i in tl.static_range(ROWS):
            # Beyond the last token no channel is read or written.
            end = tl.where(token + i < length, width, 0)
            row = tl.load(x_ptr + (token + i) * stride_x + channel, mask=channel < end, other=0.0)
            rows = rows + (row,)
        for i in tl.static_range(ROWS):
            y = bias
            for j in tl.static_range(K):
                y += rows[i + j].to(tl.float32) * weights[j]
            if SILU:
                y = y * tl.sigmoid(y)
            end = tl.where(token + i < length, width, 0)
            target = y_ptr + (token + i) * width
            tl.store(target, y.to(y_ptr.dtype.element_ty), mask=channel < end)
        before = rows[ROWS:]

    if first == 0:
        kept = ()
        for j in tl.static_range(K - 1):
            row = _load_input(
                x_ptr,
                tail_ptr,
                tl.cast(length, tl.int64) + j,
                channel,
                real,
                stride_x,
                stride_tail_token,
                stride_tail,
                K,
            )
            kept = kept + (row,)
        # The new tail may lie where the old one does: no warp stores before all have loaded.
        tl.debug_barrier()
        for j in tl.static_range(K - 1):
            target = new_tail_ptr + (batch * (K - 1) + j) * width + channel
            tl.store(target, kept[j].to(new_tail_ptr.dtype.element_ty), mask=real)


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
    overlap = overlap_options(x, weight, bias)
    if x.stride(2) != 1:
        x = x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    one = length == 1
    # Of one token, no second program reads the tail.
    new_tail = new_like(tail, in_place=one)
    tokens, rows = (1, 1) if one else (BLOCK_TOKENS, BLOCK_ROWS)
    channels = ONE_TOKEN_CHANNELS if one else BLOCK_CHANNELS
    _causal_conv[(-(-length // tokens), -(-width // channels), batch)](
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
        K=weight.shape[2],
        SILU=activation == "silu",
        TOKENS=tokens,
        ROWS=rows,
        CHANNELS=channels,
        num_warps=2,
        **overlap,
    )
    return y, new_tail
