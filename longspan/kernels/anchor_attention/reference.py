"""Anchor attention (AnLLM, arXiv 2402.07616, AnSAN and its cache), plain torch.

Segment j is the tokens after anchor a_{j-1} up to and with anchor a_j. Of the keys up to itself

    a token of segment j sees   all of segment j, and the anchors a_1 .. a_{j-1}
    the anchor a_j sees         all of segment j

The columns are the cache's entries followed by the new tokens. Dropping the tokens of closed
segments changes no segment's number, since the number counts the anchors before a column.
"""

from __future__ import annotations

import torch

from longspan.kernels.attention.int8_rows import Rows, as_float, joined, kept_like
from longspan.kernels.attention.reference import masked_attention


def anchor_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: Rows,
    past_v: Rows,
    anchors: torch.Tensor,
    entries: torch.Tensor,
    is_anchor: torch.Tensor,
) -> tuple[torch.Tensor, Rows, Rows, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.anchor_attention.anchor_attention`."""
    cached = int(entries)

    def columns(past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.cat([past[:, :cached], new.to(past.dtype)], dim=1)

    keys = joined(columns, past_k, kept_like(past_k, k))
    values = joined(columns, past_v, kept_like(past_v, v))

    column = torch.arange(cached + k.shape[1], device=q.device)
    anchor = torch.cat([column[:cached] < anchors, is_anchor])
    segment = anchor.cumsum(0) - anchor.to(torch.int64)

    def seen(new: torch.Tensor) -> torch.Tensor:
        row = cached + new
        same_segment = segment == segment[row]
        return (column <= row) & (same_segment | (anchor & ~anchor[row]))

    y = masked_attention(q, as_float(keys, q.dtype), as_float(values, q.dtype), seen)

    total = anchor.sum(0, keepdim=True)
    kept = anchor | (segment == total)
    new_entries = kept.sum(0, keepdim=True)

    def cut(past: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        cache = torch.empty(past.shape, dtype=past.dtype, device=q.device)
        cache[:, : int(new_entries)] = found[:, kept]
        return cache

    return y, joined(cut, past_k, keys), joined(cut, past_v, values), total, new_entries
