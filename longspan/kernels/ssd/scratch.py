"""How the state-space dual is cut into chunks, and the memory that the cut needs.

It knows nothing of Triton, so that the planner can ask without importing it.

    scratch_bytes(1, 16_384, heads=80, head_width=64, d_state=128)   # 346_030_080
"""

from __future__ import annotations

FLOAT32_BYTES = 4
# Up to here four launches cost more than walking the tokens once.
ONE_PASS_TOKENS = 8
# With N = 128 a chunk's state, N P values, is as large as its tokens' x; sums stay exact enough.
CHUNK_TOKENS = 128


def scratch_shapes(
    batch: int, length: int, *, heads: int, head_width: int, d_state: int
) -> tuple[tuple[int, int, int, int, int], tuple[int, int, int, int, int]]:
    """Shapes of the float32 scratch of one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        heads: heads, H.
        head_width: channels of a head, P.
        d_state: state size, N.

    Returns:
        The chunk states [B, chunks, H, N, P], and the steps and the sums of log decays in one,
        [2, B, chunks, H, chunk]; chunks is 0 where the kernel takes one pass.
    """
    chunks = 0 if length <= ONE_PASS_TOKENS else -(-length // CHUNK_TOKENS)
    return (batch, chunks, heads, d_state, head_width), (2, batch, chunks, heads, CHUNK_TOKENS)


def scratch_bytes(batch: int, length: int, *, heads: int, head_width: int, d_state: int) -> int:
    """Bytes of the float32 scratch that the Triton kernel allocates for one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        heads: heads, H.
        head_width: channels of a head, P.
        d_state: state size, N.

    Returns:
        ``4 B H (N P + 2 chunk) ceil(L / chunk)``, or 0 where the kernel takes one pass.
    """
    states, sums = scratch_shapes(
        batch, length, heads=heads, head_width=head_width, d_state=d_state
    )
    _, chunks, _, _, _ = states
    values = heads * (d_state * head_width + 2 * sums[-1])
    return FLOAT32_BYTES * batch * chunks * values
