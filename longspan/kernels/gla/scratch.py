"""How gated linear attention is cut into chunks, and the memory that the cut needs.

It knows nothing of Triton, so that the planner can ask without importing it.

    scratch_bytes(1, 16_384, heads=4, key_width=192, value_width=384)   # 19_972_096
"""

from __future__ import annotations

FLOAT32_BYTES = 4
# Up to here four launches cost more than walking the tokens once.
ONE_PASS_TOKENS = 8
# Within a block of this many tokens every pair of them has a decay of its own.
BLOCK_TOKENS = 16
CHUNK_TOKENS = 64
# A chunk's states, K V numbers a head, are 18 times its tokens' values for K = 192, V = 384: they
# are kept for so many chunks at a time, whatever L is.
SEGMENT_CHUNKS = 16


def segment_tokens() -> int:
    """Tokens whose chunks are computed together."""
    return CHUNK_TOKENS * SEGMENT_CHUNKS


def scratch_shapes(
    batch: int, length: int, *, heads: int, key_width: int, value_width: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of the float32 scratch of one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        heads: heads, H.
        key_width: key channels of a head, K.
        value_width: value channels of a head, V.

    Returns:
        The chunk states [B, chunks, H, K, V], the sums of their log decays [B, chunks, H, K], and
        the scores of their tokens [B, chunks, H, chunk, chunk]; chunks is 0 where the kernel takes
        one pass, and `SEGMENT_CHUNKS` at most.
    """
    chunks = 0 if length <= ONE_PASS_TOKENS else min(-(-length // CHUNK_TOKENS), SEGMENT_CHUNKS)
    outer = (batch, chunks, heads)
    return (
        (*outer, key_width, value_width),
        (*outer, key_width),
        (*outer, CHUNK_TOKENS, CHUNK_TOKENS),
    )


def scratch_bytes(batch: int, length: int, *, heads: int, key_width: int, value_width: int) -> int:
    """Bytes of the float32 scratch that the Triton kernel allocates for one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        heads: heads, H.
        key_width: key channels of a head, K.
        value_width: value channels of a head, V.

    Returns:
        ``4 B H (K V + K + chunk^2) min(ceil(L / chunk), segment)``, or 0 for one pass.
    """
    (_, chunks, *_), _, _ = scratch_shapes(
        batch, length, heads=heads, key_width=key_width, value_width=value_width
    )
    numbers = key_width * value_width + key_width + CHUNK_TOKENS**2
    return FLOAT32_BYTES * batch * chunks * heads * numbers
