"""Attention over a cache for the exporter, in plain ONNX operations.

The new entries are scattered into the cache. On CUDA all its entries are scored under a mask: nodes
whose lengths are data would hide their sizes from ONNX Runtime. Entries that are not in use
must be finite, as zeros are: a weight of zero takes them away. On CPUs only those in use are read.
"""

from __future__ import annotations

import torch

from longspan.kernels.attention.onnx_op import in_blocks, masked_attention


def _appended(past: torch.Tensor, new: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The cache [B, C, G, P] with the new entries [B, L, G, P] at `places` int64 [L].

    Not `index_put`, which expands the entries: ONNX Runtime's CPU cannot expand bfloat16.
    """
    batch, length = new.shape[:2]
    rows = torch.arange(batch, device=past.device)[:, None].expand(batch, length)
    indices = torch.stack([rows, places[None, :].expand(batch, length)], dim=-1)
    return torch.onnx.ops.symbolic(
        "ScatterND",
        (past, indices, new.to(past.dtype)),
        dtype=past.dtype,
        shape=past.shape,
        version=18,
    )


def full_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.full_attention.full_attention`."""
    length, capacity = q.shape[1], past_k.shape[1]
    queries = torch.arange(length, device=q.device)
    places = position + queries
    new_k, new_v = _appended(past_k, k, places), _appended(past_v, v, places)
    seen = torch.arange(capacity, device=q.device)[None, :] <= places[:, None]
    y = masked_attention(q, new_k.to(q.dtype), new_v.to(q.dtype), seen)
    return in_blocks("FullAttention", y, q, new_k, new_v, queries, position), new_k, new_v
