"""Steps by a backend's own `forward`, for engines on which a call costs little beside a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from longspan.runtime.backends import Backend, State


class ForwardSteps:
    """Each step is a call of `forward` with one token; see `longspan.runtime.backends.Steps`."""

    def __init__(self, backend: Backend, state: State) -> None:
        self._backend = backend
        self._state: State | None = state

    def step(self, token: int) -> NDArray[np.float32]:
        """See `Steps.step`.

        Raises:
            BudgetExceeded: as `forward` does.
        """
        rows, self._state = self._backend.forward(
            np.array([token], np.int64), self.state(), keep=[-1]
        )
        logits: NDArray[np.float32] = rows[-1]
        return logits

    def state(self) -> State:
        """The state itself: `forward` never changes one."""
        assert self._state is not None, "the steps are closed"
        return self._state

    def close(self) -> None:
        """Let go of the state."""
        self._state = None
