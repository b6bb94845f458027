"""What ONNX Runtime holds beside the activations of a chunk. It loads and measures nothing.

arena_bytes(manifest, "onnx-cpu", 256, capacity=0)
"""

from __future__ import annotations

from longspan.bundle import Manifest
from longspan.engines import Engine

MIB = 2**20
# On CPUs ONNX Runtime keeps activations in an arena, which grows by powers of two, and gives a
# freed piece whole to any tensor of half its size or more. It holds up to 1.8 times its tensors,
# beside 2 to 4 MiB that the first call leaves there (12 models, chunks of 16 to 1,024 tokens).
# On CUDA they lie in a `DeviceHeap`. Played over what it was asked for (H100, ten families, chunks
# of 16 and 1,024 tokens), that holds 1.02 to 1.25 times them, the most of Mamba-2; of the scores of
# long caches, a few large pieces, 1.05 times.
# torch on CPUs has no arena: with `set_mmap_threshold` what is freed goes back at once, and the
# resident set grew by no more than the tensors of the largest layer.
ARENA_PERCENT: dict[Engine, int] = {"onnx-cpu": 80, "onnx-cuda": 28}
ARENA_BYTES = 4 * MIB
ARENA_ENTRIES_PERCENT_CUDA = 8
# On CPUs what a block of queries reads of a cache are a few large pieces, a little larger with each
# chunk, so that pieces freed before are of no use: up to 1.7 times the pieces were held (1.31.1,
# filled in steps to 1,500 to 80,024 entries, heads of 32 to 128, chunks of 64 to 1,024). The scores
# of bundles that were exported when all of a chunk's were written down left up to 55 percent of
# them.
ARENA_ENTRIES_PERCENT, ARENA_ANCHORS_PERCENT, ARENA_SCORES_PERCENT = 80, 20, 55
ARENA_CACHES_BYTES = 2 * MIB


def arena_bytes(manifest: Manifest, engine: Engine, tokens: int, capacity: int) -> int:
    """Bytes of the arena, or the heap, but for the tensors of a chunk of `tokens` tokens.

    Args:
        manifest: of the bundle.
        engine: "onnx-cpu" or "onnx-cuda".
        tokens: of the chunk.
        capacity: entries of each cache.
    """
    live = manifest.chunk_peak_bytes(engine, tokens, capacity)
    short = manifest.chunk_peak_bytes(engine, tokens)
    # What is made before the first layer and held from then on lies side by side.
    early = manifest.chunk_bytes[engine][-1].fixed
    around = (short - early) * ARENA_PERCENT[engine] // 100 + ARENA_BYTES
    if engine == "onnx-cuda":
        return around + (live - short) * ARENA_ENTRIES_PERCENT_CUDA // 100
    entries = manifest.chunk_peak_bytes(engine, 0, capacity) - manifest.chunk_peak_bytes(engine, 0)
    if not entries:
        return around
    scores = max(0, live - short - entries)
    scores = scores * ARENA_SCORES_PERCENT // 100
    if manifest.config.anchor_layers:
        # Beside short caches the arena holds what it would without any.
        left = entries * ARENA_ANCHORS_PERCENT // 100
        return max(short + around - live, ARENA_BYTES + left + scores)
    # What a chunk leaves without caches holds what its blocks read of short ones, too.
    left = max(around - ARENA_BYTES, entries * ARENA_ENTRIES_PERCENT // 100)
    return left + ARENA_BYTES + ARENA_CACHES_BYTES + scores
