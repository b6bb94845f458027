"""Attention that reads closed segments through their anchors (AnLLM, arXiv 2402.07616)."""

from __future__ import annotations

from functools import reduce

import torch

from longspan.kernels.anchor_attention import anchor_attention
from longspan.models.attention import Attention
from longspan.models.config import AnchorAttentionConfig


class AnchorAttention(Attention):
    """Attention to the own segment and the anchors before it; what segments held is dropped."""

    reads_tokens = True

    def __init__(self, config: AnchorAttentionConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__(config, d_model, dtype=dtype)
        self.anchor_ids = config.anchor_ids
        self.anchor_every = config.anchor_every
        self.compressed = config.positions == "compressed"

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor], tokens: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Read x [B, L, D], made of tokens int64 [B, L].

        The state is {k, v [B, C, G, P], anchors, entries, position int64 [1]}; keys and values in
        int8 have k_scale and v_scale [B, C, G] beside them. The caches must have room: what is
        kept after the call takes at most C entries.

        Raises:
            ValueError: two sequences of the batch have their anchors at other tokens.
        """
        position, entries = state["position"], state["entries"]
        q, k, v = self.project(x, entries if self.compressed else position, state["k"].dtype)
        y, past_k, past_v, anchors, entries = anchor_attention(
            q, k, v, *self.past(state), state["anchors"], entries,
            self._are_anchors(tokens, position),
        )  # fmt: skip
        return self.merge(y), {
            **self.after(past_k, past_v),
            "anchors": anchors,
            "entries": entries,
            "position": position + x.shape[1],
        }

    def _are_anchors(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Which of the tokens int64 [B, L] from `position` on are anchors: bool [L]."""
        # One comparison an id: a tensor of ids would be copied to the device in every call.
        kinds = [tokens == anchor for anchor in self.anchor_ids]
        if self.anchor_every is not None:
            after = position + torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
            kinds.append((after % self.anchor_every == 0)[None])
        found = reduce(torch.logical_or, kinds or [torch.zeros_like(tokens, dtype=torch.bool)])
        if found.shape[0] > 1 and bool((found != found[:1]).any()):
            raise ValueError(
                "the sequences of a batch share one cache's counters, so their anchors must stand "
                f"at the same tokens; the {tokens.shape[0]} given differ. Read them one by one"
            )
        return found[0]
