"""Attention with gradients: torch's own kernels under masks that depend on no value of the host.

So a training step can be recorded as a CUDA graph. Windows are cut into blocks of their own size,
each of which looks at itself and the block before; full attention looks at its whole cache.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad, scaled_dot_product_attention


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    position: torch.Tensor,
    *,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.attention.window_attention`."""
    batch, length, heads, width = q.shape
    keys = torch.cat([past_k.to(k.dtype), k], dim=1)
    values = torch.cat([past_v.to(v.dtype), v], dim=1)
    blocks = -(-length // window)
    missing = blocks * window - length

    by_block = pad(q, (0, 0, 0, 0, 0, missing)).view(batch, blocks, window, heads, width)
    # One column in front makes the past as long as a block.
    key_pairs, value_pairs = (
        _pairs(pad(each, (0, 0, 0, 0, 1, missing)), blocks, heads) for each in (keys, values)
    )
    y = scaled_dot_product_attention(
        by_block.permute(1, 0, 3, 2, 4).flatten(1, 2),
        key_pairs,
        value_pairs,
        attn_mask=_band(position, blocks, window),
    )
    y = y.view(blocks, batch, heads, window, width).permute(1, 0, 3, 2, 4).flatten(1, 2)
    return y[:, :length], keys[:, length:].to(past_k.dtype), values[:, length:].to(past_v.dtype)


def _pairs(keys: torch.Tensor, blocks: int, heads: int) -> torch.Tensor:
    """[B, (blocks + 1) W, G, P] as each block's keys and those before: [blocks, B H, 2W, P]."""
    batch, _, groups, width = keys.shape
    split = keys.view(batch, blocks + 1, -1, groups, width)
    pairs = torch.cat([split[:, :-1], split[:, 1:]], dim=2).permute(1, 0, 3, 2, 4)
    return pairs.repeat_interleave(heads // groups, dim=2).flatten(1, 2)


def _band(position: torch.Tensor, blocks: int, window: int) -> torch.Tensor:
    """Which of its 2W keys a query sees, bool [blocks, 1, W, 2W]: W up to itself, none before 0."""
    query = torch.arange(window, device=position.device)[:, None] + window
    key = torch.arange(2 * window, device=position.device)
    band = (key <= query) & (key > query - window)
    first = torch.arange(blocks, device=position.device) * window - window + position
    return band & (first[:, None] + key >= 0)[:, None, None]


def full_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    position: torch.Tensor,
    *,
    seen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.full_attention.full_attention`.

    Args:
        q, k, v, past_k, past_v, position: as there.
        seen: bool [B, 1, L, C], which entries of its cache a token sees; None for all up to itself.
    """
    repeats = q.shape[2] // k.shape[2]
    rows = position + torch.arange(q.shape[1], device=q.device)
    keys, values = (
        past.index_copy(1, rows, new.to(past.dtype)) for past, new in ((past_k, k), (past_v, v))
    )
    if seen is None:
        seen = torch.arange(keys.shape[1], device=q.device) <= rows[:, None]
    all_keys, all_values = (
        each.to(q.dtype).transpose(1, 2).repeat_interleave(repeats, dim=1)
        for each in (keys, values)
    )
    y = scaled_dot_product_attention(q.transpose(1, 2), all_keys, all_values, attn_mask=seen)
    return y.transpose(1, 2), keys, values


def seen_through_anchors(tokens: torch.Tensor, anchor: int) -> torch.Tensor:
    """What a token sees of the text before it when closed segments are their anchors alone (AnLLM).

    As `longspan.kernels.anchor_attention` reads, but as a mask, so that anchors may stand at other
    places in each row.

    Args:
        tokens: int64 [B, L], from the start of the text.
        anchor: id of the token that ends a segment and stands for it.

    Returns:
        bool [B, 1, L, L].
    """
    is_anchor = tokens == anchor
    segment = is_anchor.cumsum(1) - is_anchor.long()
    same = segment[:, :, None] == segment[:, None, :]
    through = is_anchor[:, None, :] & ~is_anchor[:, :, None]
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return ((same | through) & (places <= places[:, None]))[:, None]
