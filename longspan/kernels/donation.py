"""States that their owner gives away: an op may write the next state where the present one lies.

    with states_donated():
        y, state = ssd(..., state=state)     # the given tensor itself, overwritten

An op overwrites only what its kernels have read before; elsewhere, and outside the block, the next
state is in memory of its own. So the owner looks which tensor came back. Plain torch overwrites
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

# Smaller tensors share pieces of 2 MiB in torch's CUDA allocator: nothing large falls between them.
LARGE_BYTES = 2**20
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


def moved_into(state: torch.Tensor, new_state: torch.Tensor) -> torch.Tensor:
    """The next state where the present one lies, if that was given away and is large.

    A large state in memory of its own would come to lie among a chunk's tensors, and those of the
    next layer would not fit around it: torch's allocator would grow by as much again.

    Args:
        state: the present one, which nothing reads any more.
        new_state: the next one, of its shape and dtype.

    Returns:
        `state`, overwritten, or `new_state`.
    """
    if new_state is state or new_state.nbytes <= LARGE_BYTES or not is_donated(state):
        return new_state
    return state.copy_(new_state)
