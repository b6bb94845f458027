"""The attention kernels at the sizes of published models."""

from __future__ import annotations

import torch
from kernel_case import Case, Draw, Inputs, Outputs, named

from longspan.kernels.anchor_attention import anchor_attention
from longspan.kernels.anchor_attention.reference import anchor_attention as anchor_reference
from longspan.kernels.attention import window_attention
from longspan.kernels.attention.reference import window_attention as window_reference
from longspan.kernels.donation import states_donated
from longspan.kernels.full_attention import full_attention
from longspan.kernels.full_attention.reference import full_attention as full_reference


def causal_pairs(tokens: int, window: int | None = None) -> int:
    """Pairs of a token and one that it sees: all before and itself, at most `window`."""
    short = tokens if window is None else min(tokens, window)
    return short * (short + 1) // 2 + (tokens - short) * short


def window_case(op: str, *, heads: int, kv_heads: int, width: int, window: int) -> Case:
    """Window attention over a text from its start."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        past = (1, window - 1, kv_heads, width)
        return {
            "q": draw.normal(1, tokens, heads, width),
            "k": draw.normal(1, tokens, kv_heads, width),
            "v": draw.normal(1, tokens, kv_heads, width),
            "past_k": torch.zeros(past, dtype=draw.dtype, device=draw.device),
            "past_v": torch.zeros(past, dtype=draw.dtype, device=draw.device),
            "position": torch.zeros(1, dtype=torch.int64, device=draw.device),
            "window": window,
        }

    return Case(
        op=op,
        what=f"window attention, window {window:,}, {heads} heads of {width}, {kv_heads} of keys",
        inputs=inputs,
        call=named(window_attention),
        reference=named(window_reference),
        bytes_moved=lambda n, size: n * size * 2 * (heads + kv_heads) * width,
        flops=lambda n: 4 * heads * width * causal_pairs(n, window),
        error_tokens=window + 1024,
    )


def seen_through_anchors(tokens: int, every: int) -> int:
    """Pairs of a token and one that it sees, with an anchor after each `every` tokens.

    A token sees its segment up to itself and the anchors before; an anchor its segment alone.
    """
    segments, left = divmod(tokens, every)
    within = segments * every * (every + 1) // 2 + left * (left + 1) // 2
    before = (every - 1) * segments * (segments - 1) // 2 + left * segments
    return within + before


def anchor_case(op: str, *, heads: int, width: int, every: int) -> Case:
    """Attention through anchors, from an empty cache."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        capacity = tokens // every + every
        shape = (1, tokens, heads, width)
        past = torch.zeros(1, capacity, heads, width, dtype=draw.dtype, device=draw.device)
        none = torch.zeros(1, dtype=torch.int64, device=draw.device)
        position = torch.arange(1, tokens + 1, device=draw.device)
        return {
            **{name: draw.normal(*shape) for name in ("q", "k", "v")},
            "past_k": past,
            "past_v": past.clone(),
            "anchors": none,
            "entries": none.clone(),
            "is_anchor": position % every == 0,
        }

    def compared(outputs: Outputs) -> Outputs:
        y, k, v, _, entries = outputs
        return y, k[:, : int(entries)], v[:, : int(entries)]

    return Case(
        op=op,
        what=f"anchor attention, an anchor every {every} tokens, {heads} heads of {width}",
        inputs=inputs,
        call=named(anchor_attention),
        reference=named(anchor_reference),
        bytes_moved=lambda n, size: n * size * 4 * heads * width,
        flops=lambda n: 4 * heads * width * seen_through_anchors(n, every),
        compared=compared,
        error_tokens=3000,
    )


def full_case(op: str, *, heads: int, kv_heads: int, width: int) -> Case:
    """Full causal attention over a text from its start."""

    def inputs(draw: Draw, tokens: int) -> Inputs:
        cache = (1, tokens, kv_heads, width)
        return {
            "q": draw.normal(1, tokens, heads, width),
            "k": draw.normal(*cache),
            "v": draw.normal(*cache),
            "past_k": torch.zeros(cache, dtype=draw.dtype, device=draw.device),
            "past_v": torch.zeros(cache, dtype=draw.dtype, device=draw.device),
            "position": torch.zeros(1, dtype=torch.int64, device=draw.device),
        }

    return Case(
        op=op,
        what=f"full attention, {heads} heads of {width}, {kv_heads} of keys",
        inputs=inputs,
        call=named(full_attention),
        reference=named(full_reference),
        bytes_moved=lambda n, size: n * size * 2 * (heads + kv_heads) * width,
        flops=lambda n: 4 * heads * width * causal_pairs(n),
        error_tokens=2048,
    )


def full_step_case(op: str, *, heads: int, kv_heads: int, width: int) -> Case:
    """One token after a text: tokens are those in the caches, which have room for one more.

    The caches are given away, as they are while an answer is made: nothing of them is copied.
    """

    def inputs(draw: Draw, tokens: int) -> Inputs:
        cache, new = (1, tokens + 1, kv_heads, width), (1, 1, kv_heads, width)
        return {
            "q": draw.normal(1, 1, heads, width),
            "k": draw.normal(*new),
            "v": draw.normal(*new),
            "past_k": draw.normal(*cache),
            "past_v": draw.normal(*cache),
            "position": torch.tensor([tokens], device=draw.device),
        }

    def call(inputs: Inputs) -> Outputs:
        with states_donated():
            return full_attention(**inputs)

    return Case(
        op=op,
        what=f"full attention, one token more, {heads} heads of {width}, {kv_heads} of keys",
        inputs=inputs,
        call=call,
        reference=named(full_reference),
        bytes_moved=lambda n, size: n * size * 2 * kv_heads * width,
        flops=lambda n: 4 * heads * width * n,
        error_tokens=2048,
    )
