"""The pass-key task (arXiv 2305.16300): a key is said once in a long text, and asked for.

One place for its words: training, the demo, the benchmark and the tests all say the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

KEY_DIGITS = 5
FACT = "The pass key is {key}. Remember it."
QUESTION = "What is the pass key?"
PROMPT = "\nQuestion: {question}\nAnswer:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """A fact to hide: the key, and where in the text it goes (0 the start, 1 the end)."""

    key: str
    depth: float


def draw_needle(rng: random.Random, depth: float | None = None) -> Needle:
    """Draw a key of `KEY_DIGITS` digits, and a depth in [0, 1) where none is given."""
    key = f"{rng.randrange(10**KEY_DIGITS):0{KEY_DIGITS}d}"
    return Needle(key=key, depth=rng.random() if depth is None else depth)


def hide(pieces: Iterable[str], needle: Needle, *, total_bytes: int) -> Iterator[str]:
    """Pass a text through with the fact on a line of its own, at the first line end past its depth.

    Args:
        pieces: the text, in pieces of any size.
        needle: what to hide, and where.
        total_bytes: UTF-8 bytes of the whole text.
    """
    target, done, hidden, last = int(total_bytes * needle.depth), 0, False, "\n"
    fact = FACT.format(key=needle.key) + "\n"
    for piece in pieces:
        size = len(piece.encode())
        if not hidden and done + size >= target:
            line_end = piece.find("\n", max(0, target - done))
            if line_end >= 0:
                yield piece[: line_end + 1] + fact
                piece, hidden = piece[line_end + 1 :], True
        done += size
        last = piece[-1:] or last
        yield piece
    if not hidden:
        yield fact if last == "\n" else "\n" + fact
