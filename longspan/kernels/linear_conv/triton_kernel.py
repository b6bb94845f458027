"""A linear layer and the convolution of a part of it, for one token in one launch.

A program owns a few outputs, as in `longspan.kernels.linear.triton_product`; where they are
channels of the convolution, it has them in registers, and nobody else needs their tail. Of more
tokens the ops run one after another.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.deferred_norm import DeferredNorm
from longspan.kernels.donation import new_like
from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.linear.triton_product import as_matrix, finish_product, start_product
from longspan.kernels.linear.triton_root import inverse_root, parts_of
from longspan.kernels.linear_conv.reference import linear_conv as one_after_another
from longspan.kernels.quantized_linear.laid_out import in_words


@triton.jit
def _linear_conv(
    x_ptr,
    sums_ptr,
    squares_ptr,
    weight_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    conv_weight_ptr,
    conv_bias_ptr,
    tail_ptr,
    projected_ptr,
    new_tail_ptr,
    outputs,
    first,
    channels,
    eps,
    stride_weight,
    stride_zeros,
    stride_conv,
    stride_tap,
    stride_tail_token,
    stride_tail,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DEPTH: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
    program_first = tl.program_id(0).to(tl.int64) * ROWS
    started = start_product(
        weight_ptr, scales_ptr, zeros_ptr, program_first, outputs, stride_weight, stride_zeros,
        WIDTH, BITS, SCALED, ROWS, BLOCK, DEPTH,
    )  # fmt: skip
    output = program_first + tl.arange(0, ROWS)
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

    root = inverse_root(squares_ptr, eps, WIDTH, PARTS, LANES)
    p = finish_product(
        started, weight_ptr, scales_ptr, zeros_ptr, x_ptr, sums_ptr, squares_ptr, None, None,
        projected_ptr, program_first, outputs, 0, stride_zeros,
        1, WIDTH, PARTS, 1, BITS, SCALED, ROWS, BLOCK, NEIGHBOURS, DEPTH, TENSOR_CORES,
    )[0]  # fmt: skip
    p *= root
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
    x: torch.Tensor | DeferredNorm,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    first: int,
    scales: torch.Tensor | None,
    zeros: torch.Tensor | None,
    bits: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.linear_conv.linear_conv`."""
    norm, row = (x, x.row) if isinstance(x, DeferredNorm) else (None, x)
    if row.shape[:2].numel() != 1:
        return one_after_another(
            x, weight, bias, conv_weight, conv_bias, tail,
            first=first, scales=scales, zeros=zeros, bits=bits,
        )  # fmt: skip
    outputs, width = weight.shape[0], row.shape[2]
    channels, _, taps = conv_weight.shape
    overlap = overlap_options(row, weight, scales, zeros, conv_weight, conv_bias, tail)
    squares, sums = (None, None) if norm is None else (norm.squares, norm.sums)
    matrix = as_matrix(
        weight, scales, zeros,
        bits=bits, width=width, dtype=row.dtype, depth=1, laid_out=sums is not None,
    )  # fmt: skip
    projected = row.new_empty(1, 1, outputs)
    new_tail = new_like(tail, in_place=True)
    _linear_conv[(matrix.programs,)](
        row.contiguous() if sums is None else in_words(row),
        sums,
        squares,
        matrix.weight,
        matrix.scales,
        matrix.zeros,
        None if bias is None else bias.contiguous(),
        conv_weight,
        None if conv_bias is None else conv_bias.contiguous(),
        tail,
        projected,
        new_tail,
        outputs,
        first,
        channels,
        0.0 if norm is None else norm.eps,
        *matrix.strides,
        conv_weight.stride(0),
        conv_weight.stride(2),
        tail.stride(1),
        tail.stride(2),
        **parts_of(squares),
        K=taps,
        TAPS=triton.next_power_of_2(taps),
        **matrix.options,
        **overlap,
    )
    sizes = [first, channels, outputs - first - channels]
    before, u, after = torch.split(projected, sizes, dim=-1)
    return before, u, after, new_tail
