"""Attention over a cache for the exporter, in plain ONNX operations.

The new entries are scattered into the cache, and all its entries are scored under a mask: nodes
whose lengths are data would hide their sizes from ONNX Runtime. Entries that are not in use
must be finite, as zeros are: a weight of zero takes them away.
"""

from __future__ import annotations

import torch

from longspan.kernels.attention.onnx_op import masked_attention


def _appended(past: torch.Tensor, new: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The cache [B, C, G, P] with the new entries [B, L, G, P] at `places` int64 [L]."""
    rows = torch.arange(past.shape[0], device=past.device)[:, None]
    return past.index_put((rows, places[None, :]), new.to(past.dtype))


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
    places = position + torch.arange(length, device=q.device)
    new_k, new_v = _appended(past_k, k, places), _appended(past_v, v, places)
    seen = torch.arange(capacity, device=q.device)[None, :] <= places[:, None]
    y = masked_attention(q, new_k.to(q.dtype), new_v.to(q.dtype), seen)
    return y, new_k, new_v
