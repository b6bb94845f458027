"""Steps by a backend's own `forward`, for engines on which a call costs little beside a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from longspan.runtime.backends import Backend, State

_CLOSED = "the steps are closed"


class ForwardSteps:
    """Each step is a call of `forward` with one token; see `longspan.runtime.backends.Steps`.

    Args:
        backend: computes.
        state: to begin from.
        donate: whether it is given away.
    """

    def __init__(self, backend: Backend, state: State, *, donate: bool) -> None:
        self._backend = backend
        self._state: State | None = state
        self._own = donate

    def step(self, token: int) -> NDArray[np.float32]:
        """See `Steps.step`.

        Raises:
            BudgetExceeded: as `forward` does.
        """
        assert self._state is not None, _CLOSED
        rows, self._state = self._backend.forward(
            np.array([token], np.int64), self._state, keep=[-1], donate=self._own
        )
        self._own = True
        logits: NDArray[np.float32] = rows[-1]
        return logits

    def state(self) -> State:
        """The state itself, which the next step leaves as it is."""
        assert self._state is not None, _CLOSED
        self._own = False
        return self._state

    def close(self) -> None:
        """Let go of the state."""
        self._state = None
