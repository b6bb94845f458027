"""States that their owner gives away: an op may write the next state where the present one lies.

    with states_donated():
        y, state = ssd(..., state=state)     # the given tensor itself, overwritten

An op overwrites only what it has read before, which its kernel for one token does; elsewhere, and
outside the block, the next state is in memory of its own. So the owner looks which tensor came
back. Plain torch overwrites nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_donated: ContextVar[bool] = ContextVar("longspan_donated", default=False)


@contextmanager
def states_donated() -> Iterator[None]:
    """Let ops overwrite the states that they are given inside the ``with`` block."""
    token = _donated.set(True)
    try:
        yield
    finally:
        _donated.reset(token)


def is_donated(*states: torch.Tensor) -> bool:
    """Whether an op may write the next states where these lie: kernels write contiguous ones."""
    return _donated.get() and all(state.is_contiguous() for state in states)


def new_like(state: torch.Tensor, *, in_place: bool) -> torch.Tensor:
    """Contiguous memory for the next state.

    Args:
        state: the present one, of any dtype and shape.
        in_place: whether the kernel that will write has read by then what it overwrites.

    Returns:
        `state` itself where it was given away and may be overwritten, else new memory.
    """
    if in_place and is_donated(state):
        return state
    return torch.empty(state.shape, dtype=state.dtype, device=state.device)
