"""What torch's CUDA allocator holds beyond a chunk's tensors. It loads and measures nothing.

unfilled_bytes(manifest, live_bytes=320 * 2**20, capacity=0)

The allocator's rules (c10/cuda/CUDACachingAllocator.cpp of torch 2.11) were played over the tensors
that chunks make. For chunks of 8,192 tokens of Mamba-2 2.7B they give 5,744 MiB, which is what an
H100 reserved. For the built-in model and small ones of full attention and of Conba they give, with
the context and 78 MiB for a recorded step, what NVML counted: 896, 936 and 956 MiB.
"""

from __future__ import annotations

from longspan.bundle import Manifest

MIB = 2**20
# The allocator grows in place (`grow_in_place`), by 2 MiB for tensors of up to 1 MiB and by 20 for
# others: at the end of each lies a piece that is not full.
SMALL_BYTES = MIB
PIECE_BYTES = (2 + 20) * MIB
# Of the large piece 8 MiB or more are in the baseline: cuBLAS' workspace of 32 MiB (compute
# capability 9.0) lies in 40, that of 8 MiB (others) in 20. Short chunks' tensors are small ones,
# between which 2 MiB more stay free.
END_BYTES = PIECE_BYTES - 8 * MIB + 2 * MIB
# Of a chunk's tensors, what lies between them and none of them fits: nothing in 2,300 random models
# of Samba, Mamba, Llama, GLA, RetNet, MixCon and of Mamba-2 with small states, chunks of 1,024 to
# 16,384 tokens; up to 8% for Conba without a gain.
BETWEEN_PERCENT = 8
# A layer's next state that is a large tensor, and not written where the one before lies, comes to
# lie among them; then the next layer's do not fit there. Up to 23% for published sizes of Mamba-2,
# 24 for GLA; 28 with MLPs between, and 51 for states half as wide (N = 64, D = 2,560). At its cap
# torch gives free pieces back before it refuses, so this costs time and not the budget.
BETWEEN_STATES_PERCENT = 25
BETWEEN_CACHES_PERCENT = 50


def unfilled_bytes(manifest: Manifest, live_bytes: int, capacity: int) -> int:
    """Bytes that torch's allocator holds beside a chunk's tensors.

    Args:
        manifest: of the bundle, with the state as the engine holds it.
        live_bytes: of the tensors that live at once at the chunk's peak.
        capacity: entries of each cache.
    """
    return END_BYTES + live_bytes * _percent_between(manifest, capacity) // 100


def _percent_between(manifest: Manifest, capacity: int) -> int:
    specs = manifest.state_at(capacity)
    # Recurrent states are float32 and do not grow; keys and values are written where they lie,
    # but for those of anchors.
    moving = [spec for spec in specs if spec.nbytes > SMALL_BYTES]
    if manifest.config.anchor_layers and any(spec.counter for spec in moving):
        return BETWEEN_CACHES_PERCENT
    if any(spec.counter is None and spec.dtype == "float32" for spec in moving):
        return BETWEEN_STATES_PERCENT
    return BETWEEN_PERCENT
