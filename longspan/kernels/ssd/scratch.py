"""How the state-space dual is cut into chunks, segments and slices, and the memory that they need.

A slice goes through the launches together, so the scratch does not grow with the document; a
segment is what one program walks, chunk by chunk. It knows nothing of Triton, so that the planner
can ask without importing it.

    sizes = Sizes(heads=80, groups=1, head_width=64, d_state=128, dtype="bfloat16")
    scratch_bytes(1, 262_144, sizes)
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2
# Up to here the launches cost more than walking the tokens once.
ONE_PASS_TOKENS = 8
# By count, the fewest operations a token with N = 128 and P = 64. Larger states and wider numbers
# leave registers for half of it only.
CHUNK_TOKENS = 64
SLICE_TOKENS = 65_536
# Programs that a launch should have: several for each multiprocessor of a large GPU, so that the
# last ones of a launch do not work alone for long.
PROGRAMS = 1056
# Stacked heads have one program to a multiprocessor, as all of its registers hold their state: one
# round of the largest GPUs, as two heads of 64 are one program.
STACKED_PROGRAMS = 264
# Rows of a stack of heads.
STACKED_ROWS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a model gives.

    Attributes:
        heads: heads, H.
        groups: groups of heads that share B and C, G.
        head_width: channels of a head, P.
        d_state: state size, N.
        dtype: of x, B and C.
    """

    heads: int
    groups: int
    head_width: int
    d_state: int
    dtype: str

    @property
    def stacked_heads(self) -> int:
        """Heads of a group that one program takes, where it has the registers; 0 for the others."""
        width = self.head_width
        if self.dtype != "bfloat16" or self.d_state > 128:
            return 0
        if width & (width - 1) or not 16 <= width <= STACKED_ROWS:
            return 0
        most = STACKED_ROWS // width
        while self.heads // self.groups % most:
            most //= 2
        return most

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        narrow = self.d_state <= 128 and self.dtype == "bfloat16"
        return CHUNK_TOKENS if narrow else CHUNK_TOKENS // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How the tokens of one slice are cut.

    Attributes:
        chunks: chunks of the slice, the last perhaps shorter; 0 where the kernel takes one pass.
        segments: walks that run side by side.
        chunks_per_segment: chunks of a walk.
    """

    chunks: int
    segments: int
    chunks_per_segment: int


def cut_slice(batch: int, length: int, sizes: Sizes) -> Cut:
    """Cut `length` tokens, at most a slice, of `batch` sequences."""
    if length <= ONE_PASS_TOKENS:
        return Cut(chunks=0, segments=0, chunks_per_segment=0)
    chunks = -(-length // sizes.chunk_tokens)
    programs = STACKED_PROGRAMS if sizes.stacked_heads else PROGRAMS
    wanted = max(1, min(chunks, programs // (batch * sizes.heads)))
    each = -(-chunks // wanted)
    return Cut(chunks=chunks, segments=-(-chunks // each), chunks_per_segment=each)


def scratch_numbers(batch: int, cut: Cut, sizes: Sizes) -> tuple[int, int, int, int]:
    """Float32 numbers of the scratch.

    Returns:
        Of the tokens, two for each and each head; of the segments' states; of their sums of log2
        decays; of the chunks' log2 decays, which stacked heads alone have.
    """
    chunks, segments = (batch * each * sizes.heads for each in (cut.chunks, cut.segments))
    states = segments * sizes.d_state * sizes.head_width
    return 2 * chunks * sizes.chunk_tokens, states, segments, chunks if sizes.stacked_heads else 0


def scratch_bytes(batch: int, length: int, sizes: Sizes) -> int:
    """Bytes of the scratch that the Triton kernel allocates for one call.

    Args:
        batch: sequences, B.
        length: tokens, L.
        sizes: of the model.

    Returns:
        The numbers of `scratch_numbers` for a slice, for stacked heads the products of B and C
        within its chunks, and the states between two slices; 0 where the kernel takes one pass. It
        stops growing after a slice.
    """
    cut = cut_slice(batch, min(length, SLICE_TOKENS), sizes)
    total = FLOAT32_BYTES * sum(scratch_numbers(batch, cut, sizes))
    if sizes.stacked_heads:
        total += BFLOAT16_BYTES * batch * cut.chunks * sizes.groups * sizes.chunk_tokens**2
    if length > SLICE_TOKENS:
        # One is read, one is written.
        total += 2 * FLOAT32_BYTES * batch * sizes.heads * sizes.d_state * sizes.head_width
    return total
