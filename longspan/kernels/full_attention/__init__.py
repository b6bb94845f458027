"""Attention over every token before, whose keys and values lie in caches of fixed capacity."""

from __future__ import annotations

import torch

from longspan.kernels.attention.int8_rows import SomeRows, require_rows, values_of
from longspan.kernels.checks import require_dtype, require_shape
from longspan.kernels.choice import implementation

__all__ = ["full_attention"]


def full_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_k: SomeRows,
    past_v: SomeRows,
    position: torch.Tensor,
) -> tuple[torch.Tensor, SomeRows, SomeRows]:
    """Append keys and values to the caches; attend from each token to itself and all before.

    Scores are scaled by 1/sqrt(P); query head h reads key head ``h // (H // G)``. With caches in
    int8 (`longspan.kernels.attention.int8_rows`) new keys and values are quantized before their
    first use, so that any cut of the tokens into calls gives the same output and the same caches.
    On CUDA nothing waits for the device, so nothing checks there that ``position + L <= C``: the
    caller does.

    Args:
        q: float [B, L, H, P], after RoPE.
        k: dtype of `q` [B, L, G, P], after RoPE; G divides H.
        v: dtype of `q` [B, L, G, P].
        past_k: float or `Int8Rows` [B, C, G, P], keys of the tokens before, oldest first, from
            entry 0 on; entries from `position` on are not looked at.
        past_v: as `past_k`.
        position: int64 [1], tokens read before this call, at most C - L.

    Returns:
        The output [B, L, H, P] and the new past_k and past_v [B, C, G, P]: copies, whose entries
        from ``position + L`` on are unspecified. The given ones are not changed, unless they were
        given away (`longspan.kernels.donation`).

    Raises:
        ValueError: a shape or dtype does not match, or the caches have no room for L tokens.
    """
    op = "full_attention"
    batch, length, heads, width = q.shape
    groups, capacity = k.shape[2], values_of(past_k).shape[1]
    if heads % groups:
        raise ValueError(f"{op}: {heads} query heads are no multiple of {groups} key heads")
    for name, tensor, shape in (
        ("k", k, (batch, length, groups, width)),
        ("v", v, (batch, length, groups, width)),
        ("position", position, (1,)),
    ):
        require_shape(op, name, tensor, shape)
    require_rows(op, past_k, past_v, (batch, capacity, groups, width))
    require_dtype(op, "position", position, torch.int64)
    _require_room(op, position, length, capacity)
    result: tuple[torch.Tensor, SomeRows, SomeRows] = implementation(op, q)(
        q, k, v, past_k, past_v, position
    )
    return result


def _require_room(op: str, position: torch.Tensor, length: int, capacity: int) -> None:
    """Raise where the host knows that the caches overflow."""
    if torch.onnx.is_in_onnx_export():
        return
    used = int(position) if position.device.type == "cpu" else 0
    if used + length > capacity:
        raise ValueError(
            f"{op}: the caches have room for {capacity} entries; {used} are in use, and {length} "
            "more do not fit"
        )
