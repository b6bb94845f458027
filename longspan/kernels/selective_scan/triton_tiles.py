"""What the selective scan's kernels do with tiles [N, channels] and [tokens, N, channels].

It knows nothing of chunks. Loading or storing a tile [N, channels] at once would make the compiler
spread it over threads for wide accesses, and exchange values through shared memory at every token:
`load_tile` and `store_tile` go row by row, outside of the loops.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def softplus(v):
    """log(1 + exp(v)), exact also where exp(v) is far below one.

    It is max(v, 0) + log1p(u) with u = exp(-|v|). log1p(u) / u is a polynomial, fitted at the
    Chebyshev points of [0, 1] to 5e-9: a logarithm and a division cost twice as much.
    """
    u = tl.exp2(-tl.abs(v) * LOG2_E)
    ratio = -0.003176057012751 * u + 0.019542526453733
    ratio = ratio * u - 0.056373611092567
    ratio = ratio * u + 0.105436235666275
    ratio = ratio * u - 0.152696669101715
    ratio = ratio * u + 0.196632742881775
    ratio = ratio * u - 0.249516159296036
    ratio = ratio * u + 0.333297103643417
    ratio = ratio * u - 0.499998927116394
    ratio = ratio * u + 1.0
    return tl.maximum(v, 0.0) + ratio * u


@triton.jit
def steps_of(dt, dt_bias, here, real):
    """Steps [tokens, channels], float32, of dt in any dtype; zero, which keeps a state, elsewhere.

    Elsewhere is where `here` or `real` is false: past the last token, and in channels that are not.
    """
    steps = softplus(dt.to(tl.float32) + dt_bias[None, :])
    return tl.where(here[:, None] & real[None, :], steps, 0.0)


@triton.jit
def silu(z):
    """z sigmoid(z): the square of an approximate root is cheaper than a division."""
    root = tl.rsqrt(1.0 + tl.exp2(z * -LOG2_E))
    return z * (root * root)


@triton.jit
def load_channels(ptr, channel, real):
    """Values of one parameter vector, zeros where it was not given."""
    values = tl.zeros(channel.shape, dtype=tl.float32)
    if ptr is not None:
        values = tl.load(ptr + channel, mask=real, other=0.0).to(tl.float32)
    return values


@triton.jit
def load_stored_rows(ptr, token, stride, column, here, real):
    """A tile [tokens, columns] in the dtype of memory, zeros where `here` or `real` is false."""
    source = ptr + token[:, None] * stride + column[None, :]
    return tl.load(source, mask=here[:, None] & real[None, :], other=0.0)


@triton.jit
def load_rows(ptr, token, stride, column, here, real):
    """The same in float32."""
    return load_stored_rows(ptr, token, stride, column, here, real).to(tl.float32)


@triton.jit
def row(tile, i: tl.constexpr, TOKENS: tl.constexpr):
    """Row `i` of a tile [tokens, N, channels].

    A sum over tokens that a thread has all of: the selects vanish. Of integers, since a compiler
    must not drop the addition of 0.0, which changes -0.0.
    """
    bits = tile.to(tl.int32, bitcast=True)
    chosen = tl.where((tl.arange(0, TOKENS) == i)[:, None, None], bits, 0)
    return tl.sum(chosen, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def load_tile(ptr, channel, real, stride, stride_n, N: tl.constexpr, STATES: tl.constexpr):
    """A tile [N, channels], zeros around it."""
    n = tl.arange(0, STATES)[:, None]
    tile = tl.zeros([STATES, channel.shape[0]], dtype=tl.float32)
    for i in tl.static_range(N):
        values = tl.load(ptr + channel * stride + i * stride_n, mask=real, other=0.0)
        tile = tl.where(n == i, values.to(tl.float32)[None, :], tile)
    return tile


@triton.jit
def store_tile(ptr, tile, channel, real, stride, stride_n, N: tl.constexpr, STATES: tl.constexpr):
    """Store a tile [N, channels]."""
    n = tl.arange(0, STATES)[:, None]
    for i in tl.static_range(N):
        values = tl.sum(tl.where(n == i, tile, 0.0), axis=0)
        tl.store(ptr + channel * stride + i * stride_n, values, mask=real)
