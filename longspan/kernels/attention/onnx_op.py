"""Sliding-window attention for the exporter, in plain ONNX operations.

The past and the new keys are joined and masked as in the reference. The products are written as
`matmul` with the heads in front: an `Einsum` costs ONNX Runtime transposes it cannot plan. Keys
stay rows (`transB`): to put them in columns took longer than all else of a step.

On CPUs `longspan.export.scans.attention` computes it in blocks of queries, and all that is written
here is dropped.
"""

from __future__ import annotations

import torch


def _heads_first(tensor: torch.Tensor) -> torch.Tensor:
    """[B, M, G, P] as [B, G, 1, M, P]."""
    return tensor.transpose(1, 2).unsqueeze(2)


def masked_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """softmax(q k^T / sqrt(P)) v over the keys that `seen`, bool [L, M], marks, for `in_blocks`.

    Returns:
        The outputs by key head, [B, L, G, H/G, P].
    """
    batch, length, heads, width = q.shape
    groups = keys.shape[2]
    scaled = q * width**-0.5
    queries = scaled.reshape(batch, length, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
    scores = torch.onnx.ops.symbolic(
        "com.microsoft::FusedMatMul",
        (queries, _heads_first(keys)),
        {"transB": 1},
        dtype=q.dtype,
        shape=(*queries.shape[:-1], keys.shape[1]),
        version=1,
    )
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ _heads_first(values)).permute(0, 3, 1, 2, 4)


def in_blocks(
    op_type: str,
    plain: torch.Tensor,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    queries: torch.Tensor,
    *seen: torch.Tensor,
    **attributes: int,
) -> torch.Tensor:
    """The output [B, L, H, P]: `plain` on CUDA, and on CPUs that of a node that is expanded there.

    Args:
        op_type: of the node, in `longspan.export.scans`.
        plain: what `masked_attention` gives.
        q: float [B, L, H, P].
        keys: [B, M, G, P], in the dtype of a cache.
        values: as `keys`.
        queries: int64 [L], 0 to L - 1.
        seen: what tells which keys a query sees.
        attributes: of the node, beside the numbers of heads and their width.
    """
    heads, width = q.shape[2:]
    # The shape of `plain`, for the exporter joins what reshapes it with what reshapes it again.
    y: torch.Tensor = torch.onnx.ops.symbolic(
        f"longspan::{op_type}",
        (plain, q, keys, values, queries, *seen),
        {"heads": heads, "groups": keys.shape[2], "width": width, **attributes},
        dtype=q.dtype,
        shape=plain.shape,
        version=1,
    )
    return y.reshape(q.shape)


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
    length = q.shape[1]
    keys = torch.cat([past_k.to(k.dtype), k], dim=1)
    values = torch.cat([past_v.to(v.dtype), v], dim=1)

    queries = torch.arange(length, device=q.device)
    row = queries[:, None]
    column = torch.arange(length + window - 1, device=q.device)[None, :]
    seen = (column >= row) & (column < row + window) & (column >= window - 1 - position)

    y = masked_attention(q, keys, values, seen)
    return (
        in_blocks("WindowAttention", y, q, keys, values, queries, position, window=window),
        keys[:, length:].to(past_k.dtype),
        values[:, length:].to(past_v.dtype),
    )
