"""How the selective scan is cut into chunks, and the memory that the cut needs.

It knows nothing of Triton, so that the planner can ask without importing it.

    scratch_bytes(1, 16_384, d_inner=5120, d_state=16)   # 24_379_392
"""

from __future__ import annotations

FLOAT32_BYTES = 4
# Up to here three launches cost more than walking the tokens once.
ONE_PASS_TOKENS = 128
# Channels that fill a large GPU by themselves: 131,072 threads are 32 warps on each of 128 cores.
ONE_PASS_CHANNELS = 131_072
MIN_CHUNK_TOKENS = 32
# At most so many chunks: with 160 warps of channels (E = 5120), 64 chunks are 10,240 warps, 7 times
# what a large GPU runs at once.
MAX_CHUNKS = 64


def chunk_tokens(batch: int, length: int, d_inner: int) -> int | None:
    """Tokens of a chunk, or None where one pass over all tokens is the better way."""
    if length <= ONE_PASS_TOKENS or batch * d_inner >= ONE_PASS_CHANNELS:
        return None
    # A multiple of the least chunk, and so of the tokens that the kernels load together.
    return -(-length // (MAX_CHUNKS * MIN_CHUNK_TOKENS)) * MIN_CHUNK_TOKENS


def scratch_shapes(
    batch: int, length: int, d_inner: int, d_state: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int], tuple[int, int, int, int]]:
    """Shapes of the float32 scratch of one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        d_inner: channels, E.
        d_state: state size, N.

    Returns:
        The chunk states [B, chunks, N, E], the sums of steps [B, chunks, E] and the tokens' B and
        C [2, B, L, N]; chunks and L are 0 where the scan takes one pass.
    """
    tokens = chunk_tokens(batch, length, d_inner)
    chunks, length = (0, 0) if tokens is None else (-(-length // tokens), length)
    return (
        (batch, chunks, d_state, d_inner),
        (batch, chunks, d_inner),
        (2, batch, length, d_state),
    )


def scratch_bytes(batch: int, length: int, d_inner: int, d_state: int) -> int:
    """Bytes of the float32 scratch that the Triton kernel allocates for one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        d_inner: channels, E.
        d_state: state size, N.

    Returns:
        ``4 B (E (N + 1) ceil(L / chunk) + 2 L N)``, or 0 where the scan takes one pass.
    """
    (_, chunks, _, _), _, (_, _, tokens, _) = scratch_shapes(batch, length, d_inner, d_state)
    return FLOAT32_BYTES * batch * (chunks * d_inner * (d_state + 1) + 2 * tokens * d_state)
