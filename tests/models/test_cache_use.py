"""Entries that the caches need, counted without running a model: against a token-by-token count."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.models.config import (
    AnchorAttentionConfig,
    CacheUse,
    FullAttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
)

TOKENS = 2**18


def attention(ids: tuple[int, ...] = (), every: int | None = None) -> LayerConfig:
    return AnchorAttentionConfig(
        n_heads=1, n_kv_heads=1, head_dim=4, anchor_ids=ids, anchor_every=every
    )


def use_of(*layers: LayerConfig, **counters: int) -> CacheUse:
    config = ModelConfig(family="llama", vocab_size=8, d_model=4, layers=layers)
    state = {
        f"layers.{i}.{name}": np.array([value])
        for i in range(len(layers))
        for name, value in counters.items()
    }
    return CacheUse.of(config, state if counters else None)


@given(
    ids=st.sets(st.integers(0, 7), max_size=3),
    every=st.none() | st.integers(1, 9),
    anchors=st.integers(0, 5),
    open_tokens=st.integers(0, 9),
    position=st.integers(0, 30),
    pieces=st.lists(st.lists(st.integers(0, 7), max_size=20), max_size=3),
)
def test_the_peak_over_all_prefixes(
    ids: set[int],
    every: int | None,
    anchors: int,
    open_tokens: int,
    position: int,
    pieces: list[list[int]],
) -> None:
    entries = anchors + open_tokens
    start = use = use_of(
        attention(tuple(ids), every), anchors=anchors, entries=entries, position=position
    )
    assert use.entries == entries
    most = entries
    for piece in pieces:
        use = use.after(np.array(piece, np.int64))
        for token in piece:
            position += 1
            if token in ids or (every is not None and position % every == 0):
                anchors, open_tokens = anchors + 1, 0
            else:
                open_tokens += 1
            most = max(most, anchors + open_tokens)
        assert use.entries == most
    length = sum(map(len, pieces))
    assert start.entries_after(length) == (None if ids else most)


def test_full_attention_takes_an_entry_a_token() -> None:
    use = use_of(FullAttentionConfig.tiny(), MlpConfig.tiny())
    assert use.after(np.zeros(40, np.int64)).after(np.zeros(3, np.int64)).entries == 43
    assert use.entries_after(1000) == 1000
    assert use_of(FullAttentionConfig.tiny(), position=9).entries == 9


def test_the_largest_cache_counts() -> None:
    use = use_of(attention(every=4), attention(every=4), FullAttentionConfig.tiny())
    assert len(use.caches) == 2
    assert use.after(np.zeros(40, np.int64)).entries == 40
    assert use.entries_after(40) == 40
    assert use_of(attention(every=4), attention((1,))).entries_after(40) is None


def test_a_state_of_fixed_size_needs_none() -> None:
    use = use_of(MlpConfig.tiny())
    assert (use.after(np.zeros(5, np.int64)).entries, use.entries_after(5)) == (0, 0)


@pytest.mark.parametrize(
    ("layer", "entries"),
    [
        (attention(every=128), TOKENS // 128 - 1 + 127),
        (attention(every=512), TOKENS // 512 - 1 + 511),
        (attention((3,)), None),
        (attention(), TOKENS),
    ],
    ids=["every 128", "every 512", "ids", "none"],
)
def test_256k_tokens_take_milliseconds(layer: LayerConfig, entries: int | None) -> None:
    tokens, use = np.random.default_rng(0).integers(0, 8, TOKENS), use_of(layer)
    assert use.entries_after(TOKENS) == entries
    started = time.process_time()
    found = use.after(tokens)
    # Measured 1 to 10 ms on a busy machine; a Python loop over the tokens takes 100.
    assert time.process_time() - started < 0.05
    if entries is not None:
        assert found.entries == entries
