"""How Conba without a gain is cut into chunks, and the memory that it needs beside its output.

It knows nothing of Triton, so that the planner can ask without importing it.

    scratch_bytes(1, 16_384, heads=32, d_state=64, delay=1)   # 150_994_944
"""

from __future__ import annotations

FLOAT32_BYTES = 4
# Up to here one pass over the tokens costs less than two over chunks and one between them.
ONE_PASS_TOKENS = 128
CHUNK_TOKENS = 64
# Tokens of a chunk in plain torch, where a turn over all chunks costs its calls.
TURNS = 32
# x and the state before it: from zeros with the tokens' s, and from either being one, without s.
MAP_VALUES = 6


def chunk_count(length: int, *, delay: int, linear: bool) -> int:
    """How many chunks are read side by side; 1 where the tokens are walked once.

    A chunk is a linear map of its first state, a two by two matrix for a delay of one token. A
    longer delay would need a matrix of (T + 1)^2 entries, a nonlinear f has none.

    Args:
        length: tokens, L.
        delay: length of the delay, T.
        linear: whether f is the identity.
    """
    if length <= ONE_PASS_TOKENS or delay > 1 or not linear:
        return 1
    return -(-length // CHUNK_TOKENS)


def scratch_bytes(
    batch: int, length: int, *, heads: int, d_state: int, delay: int, linear: bool = True
) -> int:
    """Bytes of the float32 tensors that the Triton kernel allocates for one call without a gain.

    Args:
        batch: sequences, B.
        length: tokens, L.
        heads: heads, H.
        d_state: state size, N.
        delay: length of the delay, T.
        linear: whether f is the identity.

    Returns:
        ``4 B H N (L + 8 chunks)``: the states of all tokens, and for each chunk its map and the two
        states before it; ``4 B H N (L + 2)`` for one chunk, which needs no map.
    """
    chunks = chunk_count(length, delay=delay, linear=linear)
    values = length + 2 * chunks + (MAP_VALUES * chunks if chunks > 1 else 0)
    return FLOAT32_BYTES * batch * heads * d_state * values
