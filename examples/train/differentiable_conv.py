"""The causal convolution of the Mamba mixers, with SiLU and a backward pass, as Triton kernels.

In plain torch each tap reads and writes the whole input by itself, forwards and back, which takes
as long as the matrix products beside it. Same results as `longspan.kernels.causal_conv` with
``activation="silu"``, except that the inputs before the segment get no gradient.

    y = differentiable_conv(inputs, weight, bias)      # inputs: K - 1 from before, then the segment
"""

# Triton kernels carry no types that mypy knows.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["differentiable_conv"]

TOKENS = 32
CHANNELS = 64


@triton.jit
def _forward_kernel(
    inputs, weight, bias, y,
    L, E,
    K: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y = silu(pre), pre_t = bias + sum_j weight_j inputs_{t + j}; inputs [B, L + K - 1, E]."""
    row = tl.program_id(2).to(tl.int64)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    e = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (t < L)[:, None] & (e < E)[None, :]
    pre = tl.zeros([TOKENS, CHANNELS], dtype=tl.float32)
    pre += tl.load(bias + e, mask=e < E, other=0.0)[None, :]
    source = inputs + row * (L + K - 1) * E + t[:, None] * E + e[None, :]
    for j in tl.static_range(K):
        tap = tl.load(weight + e * K + j, mask=e < E, other=0.0)
        pre += tap[None, :] * tl.load(source + j * E, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * L * E + t[:, None] * E + e[None, :], pre * tl.sigmoid(pre), mask=inside)


@triton.jit
def _backward_kernel(
    inputs, weight, bias, dy, dpre, dweight, dbias,
    L, E, parts,
    K: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dpre [B, L, E]; dweight [B, parts, E, K] and dbias [B, parts, E], for the caller to add."""
    row = tl.program_id(2).to(tl.int64)
    part = row * parts + tl.program_id(1)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    e = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (t < L)[:, None] & (e < E)[None, :]
    pre = tl.zeros([TOKENS, CHANNELS], dtype=tl.float32)
    pre += tl.load(bias + e, mask=e < E, other=0.0)[None, :]
    source = inputs + row * (L + K - 1) * E + t[:, None] * E + e[None, :]
    for j in tl.static_range(K):
        tap = tl.load(weight + e * K + j, mask=e < E, other=0.0)
        pre += tap[None, :] * tl.load(source + j * E, mask=inside, other=0.0).to(tl.float32)
    place = row * L * E + t[:, None] * E + e[None, :]
    grad = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.sigmoid(pre)
    grad *= gate * (1.0 + pre * (1.0 - gate))
    tl.store(dpre + place, grad, mask=inside)
    tl.store(dbias + part * E + e, tl.sum(grad, axis=0), mask=e < E)
    for j in tl.static_range(K):
        shifted = tl.load(source + j * E, mask=inside, other=0.0).to(tl.float32)
        tl.store(dweight + (part * E + e) * K + j, tl.sum(grad * shifted, axis=0), mask=e < E)


@triton.jit
def _input_kernel(
    dpre, weight, dinputs,
    L, E,
    K: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dinputs_{t + K - 1} = sum_j weight_j dpre_{t + K - 1 - j}, for each t of the segment."""
    row = tl.program_id(2).to(tl.int64)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    e = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([TOKENS, CHANNELS], dtype=tl.float32)
    place = row * L * E + t[:, None] * E + e[None, :]
    for j in tl.static_range(K):
        later = K - 1 - j
        there = ((t + later) < L)[:, None] & (e < E)[None, :]
        tap = tl.load(weight + e * K + j, mask=e < E, other=0.0)
        grad = tl.load(dpre + place + later * E, mask=there, other=0.0).to(tl.float32)
        total += tap[None, :] * grad
    own = row * (L + K - 1) * E + (t[:, None] + K - 1) * E + e[None, :]
    tl.store(dinputs + own, total, mask=(t < L)[:, None] & (e < E)[None, :])


class _Conv(torch.autograd.Function):
    """The kernels."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        inputs, weight, bias = inputs.contiguous(), weight.contiguous(), bias.contiguous()
        (rows, _, width), taps = inputs.shape, weight.shape[-1]
        length = inputs.shape[1] - taps + 1
        y = inputs.new_empty(rows, length, width)
        _forward_kernel[_grid(rows, length, width)](
            inputs, weight, bias, y, length, width, K=taps, TOKENS=TOKENS, CHANNELS=CHANNELS
        )
        ctx.save_for_backward(inputs, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs, weight, bias = ctx.saved_tensors
        (rows, whole, width), taps = inputs.shape, weight.shape[-1]
        length = whole - taps + 1
        grid = _grid(rows, length, width)
        dpre = inputs.new_empty(rows, length, width)
        dweight = weight.new_empty(rows, grid[1], width, taps)
        dbias = bias.new_empty(rows, grid[1], width)
        # With four warps it spills registers.
        _backward_kernel[grid](
            inputs, weight, bias, grads[0].contiguous(), dpre, dweight, dbias,
            length, width, grid[1], K=taps, TOKENS=TOKENS, CHANNELS=CHANNELS, num_warps=8,
        )  # fmt: skip
        dinputs = torch.empty_like(inputs)
        dinputs[:, : taps - 1] = 0
        _input_kernel[grid](
            dpre, weight, dinputs, length, width, K=taps, TOKENS=TOKENS, CHANNELS=CHANNELS
        )
        return dinputs, dweight.sum((0, 1)).view(weight.shape), dbias.sum((0, 1))


def _grid(rows: int, length: int, width: int) -> tuple[int, int, int]:
    return triton.cdiv(width, CHANNELS), triton.cdiv(length, TOKENS), rows


def differentiable_conv(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Convolve each channel with its own K taps and apply SiLU.

    Args:
        inputs: float [B, K - 1 + L, E], the last K - 1 inputs before the segment, then its own; the
            former get a gradient of zero.
        weight: float32 [E, 1, K]; tap K - 1 multiplies the current token.
        bias: float32 [E].

    Returns:
        dtype of `inputs` [B, L, E].
    """
    y: torch.Tensor = _Conv.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
    return y
