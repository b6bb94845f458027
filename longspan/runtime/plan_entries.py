"""Entries of the caches: what a document takes, and a question after it. It loads nothing.

document, reserve = entries_of_document(config, tokens=262_144, cache_entries=None)
needed_capacity(document, reserve, tokens=262_144)
"""

from __future__ import annotations

from collections.abc import Callable

from longspan.models.config import CacheUse, ModelConfig

# Beyond the document, for a question and its answer.
RESERVE_TOKENS = 1024
LEAST_CAPACITY = 4 * RESERVE_TOKENS
# Every call copies the caches: no larger ones than this unless a longer document is announced.
MOST_CAPACITY = 2**17


def entries_of_document(
    config: ModelConfig, *, tokens: int | None, cache_entries: int | None
) -> tuple[int | None, int]:
    """Entries of the document, None where that is open, and of a question and its answer.

    Args:
        config: the layers.
        tokens: of the document, if they are known.
        cache_entries: that it takes, if they were counted.
    """
    use = CacheUse.of(config)
    if cache_entries is None and tokens is not None:
        document = use.entries_after(tokens)
        together = use.entries_after(tokens + RESERVE_TOKENS)
        if document is not None and together is not None:
            return document, together - document
    return cache_entries, CacheUse.most_added(config, RESERVE_TOKENS)


def needed_capacity(document: int | None, reserve: int, tokens: int | None) -> int:
    """Entries that the caches must have: for a document that takes so many, or for any."""
    if document is not None:
        return document + reserve
    return LEAST_CAPACITY if tokens is None else min(LEAST_CAPACITY, tokens + reserve)


def longest_document(config: ModelConfig, entries: int) -> int | None:
    """Tokens of the longest document that fits `entries`; None where its text decides."""
    use = CacheUse.of(config)
    if use.entries_after(0) is None:
        return None
    # More tokens than caches of anchors could ever hold.
    return last(2**62, lambda tokens: (use.entries_after(tokens + RESERVE_TOKENS) or 0) <= entries)


def last(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number in 0 .. `most` that fits, where all below one that fits do; else 0."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
