"""What ONNX Runtime's arena holds beside the activations of a chunk. It loads and measures nothing.

arena_bytes(manifest, "onnx-cpu", 256, capacity=0)
"""

from __future__ import annotations

from longspan.bundle import Manifest
from longspan.engines import Engine

MIB = 2**20
# ONNX Runtime keeps activations in an arena, on CUDA with the caches that a call reads and writes.
# It grows by powers of two, and gives a freed piece whole to any tensor of half its size or more.
# On CPUs it holds up to 1.6 times its tensors, beside 2 to 4 MiB that the first call leaves there
# (12 models, chunks of 16 to 1,024 tokens); on CUDA 2.3 times (H100, chunks of 512 to 2,048).
# torch on CPUs has no arena: with `set_mmap_threshold` what is freed goes back at once, and the
# resident set grew by no more than the tensors of the largest layer.
ARENA_PERCENT: dict[Engine, int] = {"onnx-cpu": 60, "onnx-cuda": 130}
ARENA_BYTES = 4 * MIB
ARENA_ENTRIES_PERCENT_CUDA = 130
# On CPUs a layer's keys and values in another order leave as much again there, in float32, which
# is half of what they take where they are widened first (1.31.1, 2 layers, chunks of 16 and 256,
# 2,048 to 17,408 entries in float32 and bfloat16). Scores are few and large: of most numbers of
# entries up to 7 percent of them was left, but of some a piece as large as one of the three, 35
# percent in all (MixCon, 256 tokens, 9,724 and 10,724 to 11,937 entries, and 80,024).
ARENA_ENTRY_PERCENT, ARENA_WIDENED_ENTRY_PERCENT = 100, 50
ARENA_SCORES_PERCENT = 40
ARENA_SCORES_BYTES = 4 * MIB
# Of anchors' scores half as much again was left, up to what their keys and values take and 10 MiB.
ARENA_ANCHORS_PERCENT, ARENA_ANCHORS_ENTRY_PERCENT, ARENA_ANCHORS_BYTES = 55, 75, 12 * MIB


def arena_bytes(manifest: Manifest, engine: Engine, tokens: int, capacity: int) -> int:
    """Bytes of the arena but for the tensors of a chunk of `tokens` tokens.

    Args:
        manifest: of the bundle.
        engine: "onnx-cpu" or "onnx-cuda".
        tokens: of the chunk.
        capacity: entries of each cache.
    """
    live = manifest.chunk_peak_bytes(engine, tokens, capacity)
    short = manifest.chunk_peak_bytes(engine, tokens)
    around = short * ARENA_PERCENT[engine] // 100 + ARENA_BYTES
    if engine == "onnx-cuda":
        return around + (live - short) * ARENA_ENTRIES_PERCENT_CUDA // 100
    if live == short:
        return around
    ordered, scores = _grown(manifest, live - short, capacity)
    if manifest.config.anchor_layers:
        most = ordered * ARENA_ANCHORS_ENTRY_PERCENT // 100 + ARENA_ANCHORS_BYTES
        left = min(scores * ARENA_ANCHORS_PERCENT // 100, most)
        # Beside short caches the arena holds what it would without any.
        return max(short + around - live, ARENA_BYTES + left)
    plain = manifest.dtype == "float32"
    percent = ARENA_ENTRY_PERCENT if plain else ARENA_WIDENED_ENTRY_PERCENT
    left = (ordered * percent + scores * ARENA_SCORES_PERCENT) // 100
    return around + left + ARENA_SCORES_BYTES


def _grown(manifest: Manifest, grown: int, capacity: int) -> tuple[int, int]:
    """Of a chunk's bytes on onnx-cpu that grow with the caches: those of entries, and of scores."""
    ordered = manifest.chunk_peak_bytes("onnx-cpu", 0, capacity)
    ordered -= manifest.chunk_peak_bytes("onnx-cpu", 0)
    return ordered, max(0, grown - ordered)
