"""Anchor attention (AnLLM, arXiv 2402.07616, AnSAN and its cache), plain torch.

Segment j is the tokens after anchor a_{j-1} up to and with anchor a_j. Of the keys up to itself

    a token of segment j sees   all of segment j, and the anchors a_1 .. a_{j-1}
    the anchor a_j sees         all of segment j

The columns are the cache's entries followed by the new tokens. Dropping the tokens of closed
segments changes no segment's number, since the number counts the anchors before a column.
"""

from __future__ import annotations

import torch

from longspan.kernels.attention.reference import masked_attention


def anchor_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    anchors: torch.Tensor,
    entries: torch.Tensor,
    is_anchor: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.anchor_attention.anchor_attention`."""
    cached = int(entries)
    keys = torch.cat([past_k[:, :cached], k.to(past_k.dtype)], dim=1)
    values = torch.cat([past_v[:, :cached], v.to(past_v.dtype)], dim=1)

    column = torch.arange(keys.shape[1], device=q.device)
    anchor = torch.cat([column[:cached] < anchors, is_anchor])
    segment = anchor.cumsum(0) - anchor.to(torch.int64)
    row = column[cached:, None]
    same_segment = segment == segment[row]
    seen = (column <= row) & (same_segment | (anchor & ~anchor[row]))
    y = masked_attention(q, keys, values, seen)

    total = anchor.sum(0, keepdim=True)
    kept = anchor | (segment == total)
    new_entries = kept.sum(0, keepdim=True)
    new_k, new_v = (
        torch.empty(past.shape, dtype=past.dtype, device=q.device) for past in (past_k, past_v)
    )
    new_k[:, : int(new_entries)] = keys[:, kept]
    new_v[:, : int(new_entries)] = values[:, kept]
    return y, new_k, new_v, total, new_entries
