"""What torch's CUDA allocator holds beyond a chunk's tensors. It loads and measures nothing.

The allocator's rules (c10/cuda/CUDACachingAllocator.cpp of torch 2.11) were played over the tensors
that chunks make. Where a layer's next state still had memory of its own, they gave for chunks of
8,192 tokens of Mamba-2 2.7B 5,744 MiB, which is what an H100 reserved. For the built-in model and
small ones of full attention and of Conba they gave, with the context and 78 MiB for a recorded
step, what NVML counted: 896, 936 and 956 MiB.

Between a chunk's tensors nothing stays free that none of them fits: nothing in 2,000 random models
of Samba, Mamba, Mamba-2, Llama, RetNet and anchors, chunks of 512 to 16,384 tokens, keys and values
in int8 among them; nothing in 620 of Conba, of 600 to 9,000 tokens, and in 620 of gated linear
attention and retention but for 0.5 MiB in one, whose rotated queries were small tensors.
"""

from __future__ import annotations

MIB = 2**20
# The allocator grows in place (`grow_in_place`), by 2 MiB for tensors of up to 1 MiB and by 20 for
# others: at the end of each lies a piece that is not full.
PIECE_BYTES = (2 + 20) * MIB
# Of the large piece 8 MiB or more are in the baseline: cuBLAS' workspace of 32 MiB (compute
# capability 9.0) lies in 40, that of 8 MiB (others) in 20. Short chunks' tensors are small ones,
# between which 2 MiB more stay free.
END_BYTES = PIECE_BYTES - 8 * MIB + 2 * MIB
