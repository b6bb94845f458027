"""Anchor attention in Triton: three launches, no synchronisation, no matrix of L x L.

1. `count_anchors` walks the flags: anchors before each token, where each anchor stands, the new
   counters.
2. `keep_entries` fills the new cache, whose first entries are all anchors, old and new, in order.
3. `attend` folds, for a block of queries, the anchors at the start of the new cache; the old
   cache's open segment, if a query still belongs to it; and the new tokens from the start of the
   first query's segment. A token costs its segment and the anchors before it.

Where one token's past was given away (`longspan.kernels.donation`) the second comes last: its entry
is written over what an anchor's segment leaves.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton

from longspan.kernels.anchor_attention.triton_attend import attend
from longspan.kernels.anchor_attention.triton_cache import count_anchors, keep_entries
from longspan.kernels.attention.int8_rows import Int8Rows, Rows, tensors_of
from longspan.kernels.attention.triton_int8 import new_rows, planes, rows_like, rows_moved_into
from longspan.kernels.attention.triton_math import contiguous_rows
from longspan.kernels.donation import is_donated

Pair = tuple[torch.Tensor, torch.Tensor]
COUNT_TOKENS = 2048  # flags that `count_anchors` loads at once,
FEW_TOKENS = 16  # and where there are no more than these
KEEP_ROWS = 32  # entries that a program of `keep_entries` writes


def _count(counters: Pair, is_anchor: torch.Tensor) -> tuple[Pair, Pair]:
    """The anchors before each token and the token of each anchor; the new counters."""
    length, device = is_anchor.shape[0], is_anchor.device
    before, ends = (torch.empty(length, dtype=torch.int32, device=device) for _ in range(2))
    new_anchors, new_entries = (torch.empty_like(counter) for counter in counters)
    count_anchors[(1,)](
        is_anchor,
        *counters,
        before,
        ends,
        new_anchors,
        new_entries,
        length,
        TOKENS=COUNT_TOKENS if length > FEW_TOKENS else FEW_TOKENS,
        num_warps=8 if length > FEW_TOKENS else 1,
    )
    return (before, ends), (new_anchors, new_entries)


def _keep(
    ends: torch.Tensor,
    counters: Pair,
    new_counters: Pair,
    in_place: bool,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    cache_k: torch.Tensor,
    cache_v: torch.Tensor,
) -> None:
    """Fill the new caches [B, C, G, P]; in place they are the past itself."""
    batch, length, groups, width = k.shape
    capacity = past_k.shape[1]
    k, v, past_k, past_v = (contiguous_rows(each) for each in (k, v, past_k, past_v))
    keep_entries[(triton.cdiv(length if in_place else capacity, KEEP_ROWS), groups, batch)](
        k,
        v,
        past_k,
        past_v,
        cache_k,
        cache_v,
        ends,
        *counters,
        *new_counters,
        capacity,
        *k.stride()[:3],
        *v.stride()[:3],
        *past_k.stride()[:3],
        *past_v.stride()[:3],
        G=groups,
        P=width,
        WIDTH=triton.next_power_of_2(width),
        ROWS=KEEP_ROWS,
        IN_PLACE=in_place,
    )


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
    is_anchor = is_anchor.contiguous()
    past = _contiguous_rows(past_k), _contiguous_rows(past_v)
    q, k, v = contiguous_rows(q), _narrowed(k, past_k), _narrowed(v, past_v)
    new_k, new_v = new_rows(k, v, *past)
    counters = (anchors, entries)
    counts, new_counters = _count(counters, is_anchor)
    in_place = q.shape[1] == 1 and is_donated(*tensors_of(*past))
    cache = rows_like(past[0], in_place=in_place), rows_like(past[1], in_place=in_place)

    def keep() -> None:
        rows = (new_k.kept, new_v.kept, *past, *cache)
        for tensors in zip(*(planes(each) for each in rows), strict=True):
            _keep(counts[1], counters, new_counters, in_place, *tensors)

    # Queries read the call's anchors from the new cache, and a segment that they close from the
    # old. One token reads old anchors alone: its entry may come after, over that segment.
    if not in_place:
        keep()
    y = attend(q, new_k.used, new_v.used, past, cache, is_anchor, counts, counters)
    if in_place:
        keep()
    cache = rows_moved_into(past[0], cache[0]), rows_moved_into(past[1], cache[1])
    return y, *cache, *new_counters


def _contiguous_rows(rows: Rows) -> Rows:
    if isinstance(rows, Int8Rows):
        return Int8Rows(contiguous_rows(rows.values), rows.scale)
    return contiguous_rows(rows)


def _narrowed(new: torch.Tensor, past: Rows) -> torch.Tensor:
    """New rows in the dtype of a float cache; those of one in int8 are quantized later."""
    return contiguous_rows(new if isinstance(past, Int8Rows) else new.to(past.dtype))
