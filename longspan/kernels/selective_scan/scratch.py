"""How the selective scan is cut into chunks, and the memory that the cut needs.

It knows nothing of Triton, so that the planner can ask without importing it.

    scratch_bytes(1, 16_384, d_inner=5120, d_state=16)   # 22_282_240
"""

from __future__ import annotations

FLOAT32_BYTES = 4
# Up to here three launches cost more than walking the tokens once.
ONE_PASS_TOKENS = 128
# Channels that fill a large GPU by themselves: 131,072 threads are 32 warps on each of 128 cores.
ONE_PASS_CHANNELS = 131_072
MIN_CHUNK_TOKENS = 32
MAX_CHUNK_TOKENS = 256
# Chunks to aim at: with 40 blocks of channels (E = 5120), 64 chunks are 2,560 programs.
TARGET_CHUNKS = 64


def chunk_tokens(batch: int, length: int, d_inner: int) -> int | None:
    """Tokens of a chunk, or None where one pass over all tokens is the better way."""
    if length <= ONE_PASS_TOKENS or batch * d_inner >= ONE_PASS_CHANNELS:
        return None
    tokens = MIN_CHUNK_TOKENS
    while tokens < MAX_CHUNK_TOKENS and tokens * TARGET_CHUNKS < length:
        tokens *= 2
    return tokens


def scratch_shapes(
    batch: int, length: int, d_inner: int, d_state: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int]]:
    """Shapes of the float32 scratch of one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        d_inner: channels, E.
        d_state: state size, N.

    Returns:
        The chunk states [B, chunks, N, E] and the sums of steps [B, chunks, E]; chunks is 0
        where the scan takes one pass.
    """
    tokens = chunk_tokens(batch, length, d_inner)
    chunks = 0 if tokens is None else -(-length // tokens)
    return (batch, chunks, d_state, d_inner), (batch, chunks, d_inner)


def scratch_bytes(batch: int, length: int, d_inner: int, d_state: int) -> int:
    """Bytes of the float32 scratch that the Triton kernel allocates for one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        d_inner: channels, E.
        d_state: state size, N.

    Returns:
        ``4 B E (N + 1) ceil(L / chunk)``, or 0 where the scan takes one pass.
    """
    (_, chunks, _, _), _ = scratch_shapes(batch, length, d_inner, d_state)
    return FLOAT32_BYTES * batch * chunks * d_inner * (d_state + 1)
