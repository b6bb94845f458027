"""A linear layer and the convolution of a part of it, for one token in one launch.

A program owns a few outputs, as in `longspan.kernels.linear.triton_kernel`; where they are channels
of the convolution, it has them in registers, and nobody else needs their tail. Of more tokens the
ops run one after another.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations; its tuples grow.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.donation import new_like
from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.linear.triton_kernel import load_weights, row_block
from longspan.kernels.linear_conv.reference import linear_conv as one_after_another


@triton.jit
def _linear_conv(
    x_ptr,
    weight_ptr,
    bias_ptr,
    conv_weight_ptr,
    conv_bias_ptr,
    tail_ptr,
    projected_ptr,
    new_tail_ptr,
    outputs,
    first,
    channels,
    stride_weight,
    stride_conv,
    stride_tap,
    stride_tail_token,
    stride_tail,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DEPTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    output = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows_ptr = weight_ptr + (tl.minimum(output, outputs - 1) * stride_weight)[:, None]
    ahead = ()
    for part in tl.static_range(DEPTH):
        ahead = ahead + (load_weights(rows_ptr, part * BLOCK, WIDTH, BLOCK),)
    # A row for each channel, a column for each of the inputs and taps that meet; the last is ours.
    channel = (output - first)[:, None]
    j = tl.arange(0, TAPS)[None, :]
    convolved = (channel >= 0) & (channel < channels)
    source = tail_ptr + j * stride_tail_token + channel * stride_tail
    inputs = tl.load(source, mask=convolved & (j < K - 1), other=0.0)
    source = conv_weight_ptr + channel * stride_conv + j * stride_tap
    taps = tl.load(source, mask=convolved & (j < K), other=0.0).to(tl.float32)
    conv_bias = tl.zeros([ROWS, TAPS], dtype=tl.float32)
    if conv_bias_ptr is not None:
        once = convolved & (j == 0)
        conv_bias += tl.load(conv_bias_ptr + channel + j, mask=once, other=0.0).to(tl.float32)
    wait_for_last_launch(OVERLAP)

    total = tl.zeros([ROWS, BLOCK // NEIGHBOURS], dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + column, mask=column < WIDTH, other=0.0)
        weights = ahead[0].to(x.dtype).to(tl.float32)
        ahead = ahead[1:] + (load_weights(rows_ptr, start + DEPTH * BLOCK, WIDTH, BLOCK),)
        products = weights * x.to(tl.float32)[None, :]
        total += tl.sum(tl.reshape(products, [ROWS, BLOCK // NEIGHBOURS, NEIGHBOURS]), axis=2)

    p = tl.sum(total, axis=1)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + output, mask=output < outputs, other=0.0)
        p += bias.to(projected_ptr.dtype.element_ty).to(tl.float32)
    p = p.to(projected_ptr.dtype.element_ty)
    inputs = tl.where(j == K - 1, p.to(tail_ptr.dtype.element_ty)[:, None], inputs)
    u = tl.sum(inputs.to(p.dtype).to(tl.float32) * taps + conv_bias, axis=1)
    u = (u * tl.sigmoid(u)).to(p.dtype)
    own = (output >= first) & (output < first + channels)
    tl.store(projected_ptr + output, tl.where(own, u, p), mask=output < outputs)
    # The new tail may lie where the old one does: no warp stores before all have loaded.
    tl.debug_barrier()
    target = new_tail_ptr + (j - 1) * channels + channel
    tl.store(target, inputs, mask=convolved & (j > 0) & (j < K))


def linear_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    first: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.linear_conv.linear_conv`."""
    if x.shape[:2].numel() != 1:
        return one_after_another(x, weight, bias, conv_weight, conv_bias, tail, first=first)
    outputs, width = weight.shape
    channels, _, taps = conv_weight.shape
    overlap = overlap_options(x, weight, conv_weight, conv_bias, tail)
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    projected = x.new_empty(1, 1, outputs)
    new_tail = new_like(tail, in_place=True)
    block = row_block(outputs, width, weight.element_size(), depth=1)
    _linear_conv[(triton.cdiv(outputs, block["ROWS"]),)](
        x.contiguous(),
        weight,
        None if bias is None else bias.contiguous(),
        conv_weight,
        None if conv_bias is None else conv_bias.contiguous(),
        tail,
        projected,
        new_tail,
        outputs,
        first,
        channels,
        weight.stride(0),
        conv_weight.stride(0),
        conv_weight.stride(2),
        tail.stride(1),
        tail.stride(2),
        WIDTH=width,
        K=taps,
        TAPS=triton.next_power_of_2(taps),
        **block,
        **overlap,
    )
    sizes = [first, channels, outputs - first - channels]
    before, u, after = torch.split(projected, sizes, dim=-1)
    return before, u, after, new_tail
