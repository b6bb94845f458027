"""Launches that their caller lets begin before the one before them has ended.

    with launches_overlap():
        logits, state = decoder(token, None, state)

A kernel of one token is short: starting it, and waiting for its first load, takes as long as what
it computes. On a GPU that can (compute capability 9.0), a launch inside the block begins while the
one before it runs, loads its weights and its state, and waits before it reads anything else. So
what is under way may write no weight, as training does, and no state that a launch in the block
begins from: one step a block, or a launch that does not overlap, as torch's, between two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_allowed: ContextVar[bool] = ContextVar("longspan_launches_overlap", default=False)


@contextmanager
def launches_overlap() -> Iterator[None]:
    """Let launches inside the ``with`` block overlap; weights stay as they are."""
    token = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(token)


def launches_may_overlap() -> bool:
    """Whether the caller allowed it."""
    return _allowed.get()
