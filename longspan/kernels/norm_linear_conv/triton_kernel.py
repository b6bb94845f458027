"""The residual's sum and norm, linear layer and convolution of one token in one launch.

A program owns a few outputs, as in `longspan.kernels.linear.triton_kernel`. It begins with the sum
of the whole row and its norm, which all programs compute alike and the first keeps; and where its
outputs are channels of the convolution, it has them in registers, and nobody else needs their tail.
Of more tokens the ops run one after another.
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
from longspan.kernels.norm_linear_conv import AddNorm
from longspan.kernels.norm_linear_conv.reference import norm_linear_conv as one_after_another

# Columns whose sum all programs begin with: wider, and the sum is better taken once.
MAX_WIDTH = 8192


@triton.jit
def _load_sum(x_ptr, y_ptr, start, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A block of x + y in the dtype of x; a second reading comes from the first cache."""
    column = start + tl.arange(0, BLOCK)
    s = tl.load(x_ptr + column, mask=column < WIDTH, other=0.0)
    if y_ptr is not None:
        y = tl.load(y_ptr + column, mask=column < WIDTH, other=0.0).to(s.dtype)
        s = (s.to(tl.float32) + y.to(tl.float32)).to(s.dtype)
    return s


@triton.jit
def _norm_linear_conv(
    x_ptr,
    y_ptr,
    norm_ptr,
    weight_ptr,
    bias_ptr,
    conv_weight_ptr,
    conv_bias_ptr,
    tail_ptr,
    total_ptr,
    projected_ptr,
    new_tail_ptr,
    outputs,
    first,
    channels,
    eps,
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
    program = tl.program_id(0).to(tl.int64)
    output = program * ROWS + tl.arange(0, ROWS)
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

    root = 1.0
    if norm_ptr is not None:
        squares = tl.zeros([BLOCK], dtype=tl.float32)
        # All of the row is on its way at once.
        for part in tl.static_range((WIDTH + BLOCK - 1) // BLOCK):
            s = _load_sum(x_ptr, y_ptr, part * BLOCK, WIDTH, BLOCK).to(tl.float32)
            squares += s * s
        root = 1.0 / tl.sqrt(tl.sum(squares) / WIDTH + eps)
    total = tl.zeros([ROWS, BLOCK // NEIGHBOURS], dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK):
        x = _load_sum(x_ptr, y_ptr, start, WIDTH, BLOCK)
        if norm_ptr is not None:
            column = start + tl.arange(0, BLOCK)
            scale = tl.load(norm_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
            x = (x.to(tl.float32) * root * scale).to(projected_ptr.dtype.element_ty)
        weights = ahead[0].to(x.dtype).to(tl.float32)
        ahead = ahead[1:] + (load_weights(rows_ptr, start + DEPTH * BLOCK, WIDTH, BLOCK),)
        products = weights * x.to(tl.float32)[None, :]
        total += tl.sum(tl.reshape(products, [ROWS, BLOCK // NEIGHBOURS, NEIGHBOURS]), axis=2)
    if y_ptr is not None:
        # By the first program alone.
        for start in range(0, tl.where(program == 0, WIDTH, 0), BLOCK):
            column = start + tl.arange(0, BLOCK)
            s = _load_sum(x_ptr, y_ptr, start, WIDTH, BLOCK)
            tl.store(total_ptr + column, s, mask=column < WIDTH)

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


def norm_linear_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    first: int,
    norm: AddNorm | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.norm_linear_conv.norm_linear_conv`."""
    outputs, width = weight.shape
    channels, _, taps = conv_weight.shape
    if x.shape[:2].numel() != 1 or width > MAX_WIDTH:
        return one_after_another(
            x, weight, bias, conv_weight, conv_bias, tail, first=first, norm=norm
        )
    overlap = overlap_options(x, weight, conv_weight, conv_bias, tail)
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    x = x.contiguous()
    y = None if norm is None or norm.y is None else norm.y.contiguous()
    # Every program reads x: the sum has memory of its own.
    total = x if y is None else torch.empty_like(x)
    projected = x.new_empty(1, 1, outputs, dtype=x.dtype if norm is None else norm.dtype)
    new_tail = new_like(tail, in_place=True)
    block = row_block(outputs, width, weight.element_size())
    _norm_linear_conv[(triton.cdiv(outputs, block["ROWS"]),)](
        x,
        y,
        None if norm is None else norm.weight.contiguous(),
        weight,
        None if bias is None else bias.contiguous(),
        conv_weight,
        None if conv_bias is None else conv_bias.contiguous(),
        tail,
        None if y is None else total,
        projected,
        new_tail,
        outputs,
        first,
        channels,
        0.0 if norm is None else norm.eps,
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
    return total, before, u, after, new_tail
