"""Anchor attention for the exporter, in plain ONNX operations: dense scores, pruned in the graph.

The columns are all C entries of the cache, written or not, followed by the new tokens; otherwise
masks and pruning are the reference's. Which column each new entry comes from is scattered as
integers, and the keys and values are gathered once: no node's size depends on values, and nothing
is counted outside the graph.

A weight of zero multiplies what lies beyond `entries`: it must be finite, such as the zeros that
a new state holds. What this op leaves there is finite then, too.
"""

from __future__ import annotations

import torch

from longspan.kernels.attention.onnx_op import in_blocks, masked_attention


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
    length, capacity = q.shape[1], past_k.shape[1]
    keys = torch.cat([past_k, k.to(past_k.dtype)], dim=1)
    values = torch.cat([past_v, v.to(past_v.dtype)], dim=1)

    column = torch.arange(capacity + length, device=q.device)
    written = (column < entries) | (column >= capacity)
    anchor = torch.cat([column[:capacity] < anchors, is_anchor])
    # Counted where `entries` lies, not compared as columns: ONNX Runtime computes on the host what
    # follows from lengths alone, and a mask L by C + L is nothing to compute there.
    order = written.to(torch.int64).cumsum(0)
    count = anchor.to(torch.int64).cumsum(0)
    segment = count - anchor.to(torch.int64)
    causal = written & (order <= order[capacity:, None])
    same_segment = segment == segment[capacity:, None]
    seen = causal & (same_segment | (anchor & ~is_anchor[:, None]))
    y = masked_attention(q, keys.to(q.dtype), values.to(q.dtype), seen)
    queries = torch.arange(length, device=q.device)
    y = in_blocks("AnchorAttention", y, q, keys, values, queries, anchors, entries, is_anchor)

    total = count[-1:]
    kept = written & (anchor | (segment == total))
    rank = kept.to(torch.int64).cumsum(0)
    # What is not kept goes to a slot after the last, which is cut off.
    slot = torch.where(kept, rank - 1, capacity)
    source = torch.zeros(capacity + 1, dtype=torch.int64, device=q.device)
    source = source.scatter(0, slot, column)[:capacity]
    new_k, new_v = keys.index_select(1, source), values.index_select(1, source)
    return y, new_k, new_v, total, rank[-1:]
