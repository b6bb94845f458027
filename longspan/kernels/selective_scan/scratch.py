"""Which way the selective scan takes, how it is cut into chunks, and the memory that it needs.

It knows nothing of Triton, so that the planner can ask without importing it.

    scratch_bytes(1, 16_384, d_inner=5120, d_state=16)                     # 24_379_392
    scratch_bytes(1, 16_384, d_inner=5120, d_state=16, schedulers=528)     # 2_097_152
"""

from __future__ import annotations

from typing import Literal

Way = Literal["one pass", "one walk", "three passes"]

FLOAT32_BYTES = 4
# Up to here copies and launches cost more than walking the tokens once, a thread a channel.
ONE_PASS_TOKENS = 128
# Channels that fill a large GPU, a thread each: 131,072 threads are 32 warps on each of 128 cores.
ONE_PASS_CHANNELS = 131_072
# A warp of the walk holds 8 channels, and at most so many states of each.
WALK_CHANNELS = 8
WALK_STATES = 16
MIN_CHUNK_TOKENS = 32
# At most so many chunks: with 160 warps of channels (E = 5120), 64 chunks are 10,240 warps, 7 times
# what a large GPU runs at once.
MAX_CHUNKS = 64


def choose_way(batch: int, length: int, d_inner: int, d_state: int, schedulers: int | None) -> Way:
    """Choose how to scan.

    Args:
        batch: sequences, B.
        length: tokens, L.
        d_inner: channels, E.
        d_state: state size, N.
        schedulers: of the device, which walks where there is a warp for each; None for a device
            that is not known, which is taken to have too many of them.
    """
    if length <= ONE_PASS_TOKENS or batch * d_inner >= ONE_PASS_CHANNELS:
        return "one pass"
    warps = batch * -(-d_inner // WALK_CHANNELS)
    if schedulers is not None and warps >= schedulers and d_state <= WALK_STATES:
        return "one walk"
    return "three passes"


def chunk_tokens(length: int) -> int:
    """Tokens of a chunk of the three passes, for L = `length`."""
    # A multiple of the least chunk, and so of the tokens that the kernels load together.
    return -(-length // (MAX_CHUNKS * MIN_CHUNK_TOKENS)) * MIN_CHUNK_TOKENS


def chunk_shapes(
    batch: int, length: int, d_inner: int, d_state: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int]]:
    """Shapes of the three passes' chunk states [B, chunks, N, E] and sums of steps [B, chunks, E].

    Both are float32.
    """
    chunks = -(-length // chunk_tokens(length))
    return (batch, chunks, d_state, d_inner), (batch, chunks, d_inner)


def scratch_bytes(
    batch: int, length: int, d_inner: int, d_state: int, schedulers: int | None = None
) -> int:
    """Bytes of the float32 scratch that the Triton kernels allocate for one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        d_inner: channels, E.
        d_state: state size, N.
        schedulers: of the device; None for the most that any device takes.

    Returns:
        0 for one pass; ``8 B L N`` for one walk (B and C in float32); for three passes
        ``4 B (E (N + 1) ceil(L / chunk) + 2 L N)``.
    """
    way = choose_way(batch, length, d_inner, d_state, schedulers)
    if way == "one pass":
        return 0
    copied = 2 * batch * length * d_state
    if way == "one walk":
        return FLOAT32_BYTES * copied
    _, (_, chunks, _) = chunk_shapes(batch, length, d_inner, d_state)
    return FLOAT32_BYTES * (batch * chunks * d_inner * (d_state + 1) + copied)
