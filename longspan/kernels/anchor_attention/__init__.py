"""Attention that reads closed segments through their anchors (AnLLM, arXiv 2402.07616)."""

from __future__ import annotations

import torch

from longspan.kernels.attention.int8_rows import SomeRows, require_rows, values_of
from longspan.kernels.checks import require_dtype, require_shape
from longspan.kernels.choice import implementation

__all__ = ["anchor_attention"]


def anchor_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: SomeRows,
    past_v: SomeRows,
    anchors: torch.Tensor,
    entries: torch.Tensor,
    is_anchor: torch.Tensor,
) -> tuple[torch.Tensor, SomeRows, SomeRows, torch.Tensor, torch.Tensor]:
    """Attend to the own segment and the anchors before it, and drop every segment that closes.

    An anchor ends its segment. A token sees its segment up to itself and every earlier anchor; an
    anchor sees its segment alone. Scores are scaled by 1/sqrt(P); query head h reads key head
    ``h // (H // G)``. Keys and values are rounded to the cache's dtype before their first use, so
    that any cut of the tokens into calls gives the same output and the same cache.

    The cache is a buffer of C entries: the anchors of all closed segments in order, then the tokens
    of the open one. After the call it holds the old anchors, the call's anchors and the tokens
    after the last; without an anchor in the call, all old entries and all tokens.

    Args:
        q: float [B, L, H, P], after RoPE, L >= 1.
        k: dtype of `q` [B, L, G, P], after RoPE; G divides H.
        v: dtype of `q` [B, L, G, P].
        past_k: float or `Int8Rows` [B, C, G, P]; it is not changed, nor is `past_v`, unless they
            were given away (`longspan.kernels.donation`).
        past_v: as `past_k`, of its dtype.
        anchors: int64 [1], entries of the cache that are anchors.
        entries: int64 [1], entries of the cache in use; what lies beyond them has no meaning.
        is_anchor: bool [L], which tokens are anchors, in every row of the batch.

    Returns:
        The output [B, L, H, P]; the new past_k, past_v, anchors and entries.

    Raises:
        ValueError: a shape or dtype does not match; or, looked at on the CPU only, the counters do
            not fit the cache, or what is to be kept needs more than C entries. On other devices
            that is the caller's to see to.
    """
    op = "anchor_attention"
    batch, length, heads, width = q.shape
    groups, capacity = k.shape[2], values_of(past_k).shape[1]
    if heads % groups:
        raise ValueError(f"{op}: {heads} query heads are no multiple of {groups} key heads")
    for name, tensor, shape in (
        ("k", k, (batch, length, groups, width)),
        ("v", v, (batch, length, groups, width)),
        ("anchors", anchors, (1,)),
        ("entries", entries, (1,)),
        ("is_anchor", is_anchor, (length,)),
    ):
        require_shape(op, name, tensor, shape)
    require_rows(op, past_k, past_v, (batch, capacity, groups, width))
    for name, tensor, dtype in (
        ("k", k, q.dtype),
        ("v", v, q.dtype),
        ("past_v", values_of(past_v), values_of(past_k).dtype),
        ("anchors", anchors, torch.int64),
        ("entries", entries, torch.int64),
        ("is_anchor", is_anchor, torch.bool),
    ):
        require_dtype(op, name, tensor, dtype)
    if q.device.type == "cpu" and not torch.onnx.is_in_onnx_export():
        _require_room(op, capacity, int(anchors), int(entries), is_anchor)
    result: tuple[torch.Tensor, SomeRows, SomeRows, torch.Tensor, torch.Tensor] = implementation(
        op, q
    )(q, k, v, past_k, past_v, anchors, entries, is_anchor)
    return result


def _require_room(
    op: str, capacity: int, anchors: int, entries: int, is_anchor: torch.Tensor
) -> None:
    """Raise unless the counters are those of a cache that holds what the call keeps."""
    if not 0 <= anchors <= entries <= capacity:
        raise ValueError(
            f"{op}: anchors is {anchors} and entries is {entries}, in a cache of {capacity}; it "
            "must be that 0 <= anchors <= entries <= capacity"
        )
    length = is_anchor.shape[0]
    positions = is_anchor.nonzero()
    found = positions.shape[0]
    kept = anchors + found + length - 1 - int(positions[-1]) if found else entries + length
    if kept > capacity:
        raise ValueError(
            f"{op}: {entries} entries and {length} tokens with {found} anchors leave {kept} "
            f"entries to keep, in a cache of {capacity}; give past_k and past_v at least {kept}"
        )
