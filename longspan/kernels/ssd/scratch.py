"""How the state-space dual is cut into chunks, segments and slices, and the memory that they need.

A slice goes through the launches together, so the scratch does not grow with the document; a
segment is what one program walks, chunk by chunk. It knows nothing of Triton, so that the planner
can ask without importing it.

    scratch_bytes(1, 262_144, heads=80, head_width=64, d_state=128, dtype="bfloat16")
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32_BYTES = 4
# Up to here the launches cost more than walking the tokens once.
ONE_PASS_TOKENS = 8
# By count, the fewest operations a token with N = 128 and P = 64. Larger states and wider numbers
# leave registers for half of it only.
CHUNK_TOKENS = 64
SLICE_TOKENS = 65_536
# Programs that a launch should have: several for each multiprocessor of a large GPU, so that the
# last ones of a launch do not work alone for long.
PROGRAMS = 1056
STACKED_PROGRAMS = 264
# Rows of stacked heads.
STACKED_ROWS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How the tokens of one slice are cut.

    Attributes:
        chunk: tokens of a chunk.
        chunks: chunks of the slice, the last perhaps shorter; 0 where the kernel takes one pass.
        segments: walks that run side by side.
        chunks_per_segment: chunks of a walk.
    """

    chunk: int
    chunks: int
    segments: int
    chunks_per_segment: int


def cut_slice(batch: int, length: int, *, heads: int, d_state: int, dtype: str) -> Cut:
    """Cut `length` tokens, at most a slice, of `batch` sequences with `heads` heads of `dtype`."""
    chunk = CHUNK_TOKENS if d_state <= 128 and dtype == "bfloat16" else CHUNK_TOKENS // 2
    if length <= ONE_PASS_TOKENS:
        return Cut(chunk=chunk, chunks=0, segments=0, chunks_per_segment=0)
    chunks = -(-length // chunk)
    programs = STACKED_PROGRAMS if dtype == "bfloat16" else PROGRAMS
    wanted = max(1, min(chunks, programs // (batch * heads)))
    each = -(-chunks // wanted)
    return Cut(chunk=chunk, chunks=chunks, segments=-(-chunks // each), chunks_per_segment=each)


def stacked_heads(*, heads: int, groups: int, head_width: int, d_state: int, dtype: str) -> int:
    """Heads of a group that a program takes together; 0 for none."""
    if dtype != "bfloat16" or d_state > 128 or head_width & (head_width - 1) or head_width < 16:
        return 0
    most = STACKED_ROWS // head_width
    while most > 1 and (heads // groups) % most:
        most //= 2
    return most if most * head_width >= 16 else 0


def scratch_bytes(
    batch: int,
    length: int,
    *,
    heads: int,
    head_width: int,
    d_state: int,
    dtype: str,
) -> int:
    """Bytes of the scratch that the Triton kernel allocates for one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        heads: heads, H.
        head_width: channels of a head, P.
        d_state: state size, N.
        dtype: of x, B and C.

    Returns:
        For each sequence and head, steps and their sums in float32 for each token of a slice, and a
        state and a sum for each segment; 0 where the kernel takes one pass. It stops growing after
        a slice.
    """
    cut = cut_slice(batch, min(length, SLICE_TOKENS), heads=heads, d_state=d_state, dtype=dtype)
    sums = 2 * FLOAT32_BYTES * cut.chunks * heads * cut.chunk
    states = FLOAT32_BYTES * cut.segments * heads * (d_state * head_width + 1)
    # The states between two slices: one is read, one is written.
    passed = 2 * FLOAT32_BYTES * heads * d_state * head_width if length > SLICE_TOKENS else 0
    return batch * (sums + states + passed)
