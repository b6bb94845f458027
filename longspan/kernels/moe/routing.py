"""Which experts a token goes to: shared by every implementation, so that none chooses otherwise."""

from __future__ import annotations

import torch


def choose_experts(
    logits: torch.Tensor, *, top_k: int, renormalise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each token, and the weights of what they give.

    Args:
        logits: float32 [T, E].
        top_k: experts a token goes to.
        renormalise: whether a token's weights sum to one.

    Returns:
        Weights float32 and experts int64, both [T, top_k], the largest weight first; of equals the
        expert with the lower number.
    """
    shares = torch.softmax(logits, dim=-1)
    if torch.onnx.is_in_onnx_export():
        # ONNX's TopK takes the lower of two equals; torch's does not say which it takes.
        weights, experts = shares.topk(top_k, dim=-1)
    else:
        ordered, order = shares.sort(dim=-1, descending=True, stable=True)
        weights, experts = ordered[:, :top_k], order[:, :top_k]
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, experts
