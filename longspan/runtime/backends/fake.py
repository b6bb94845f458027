"""A backend without a model, for the tests of applications and our own.

It answers by a rule that a test can know beforehand: the next token is the one that followed the
last time that the present token was read; before that has happened, the token itself.

    backend = FakeBackend(vocab_size=100)
    logits, state = backend.forward(np.array([5, 6, 5]), backend.new_state(), keep=[-1])
    int(logits[-1].argmax())      # 6, which followed 5 before
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.engines import Engine
from longspan.runtime.backends import Arrays, State

# Stands in `follower` where a token was not followed yet, and in `last` before the first token.
_NONE = 0


class FakeBackend:
    """Says after each token what followed it before; any way of cutting gives the same.

    The state is ``last`` int64 [1] and ``follower`` int64 [V], both ids plus one and zero for
    none, and ``position`` int64 [1]: fixed sizes, as a model has.

    Args:
        vocab_size: V, at least 1.
        engine: the engine that it says it is.
    """

    def __init__(self, vocab_size: int, *, engine: Engine = "onnx-cpu") -> None:
        self.engine = engine
        self.vocab_size = vocab_size
        self.closed = False

    def new_state(self) -> State:
        """Nothing read."""
        return {
            "last": np.zeros(1, np.int64),
            "follower": np.zeros(self.vocab_size, np.int64),
            "position": np.zeros(1, np.int64),
        }

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int]
    ) -> tuple[NDArray[np.float32], State]:
        """See `longspan.runtime.backends.Backend.forward`; the answer's logit is 1, the rest 0."""
        follower = np.array(state["follower"])
        last = int(state["last"][0])
        kept = {index % len(tokens) for index in keep}
        answers: dict[int, int] = {}
        for index, token in enumerate(tokens.tolist()):
            if last != _NONE:
                follower[last - 1] = token + 1
            last = token + 1
            if index in kept:
                answers[index] = int(follower[token]) - 1 if follower[token] != _NONE else token
        logits = np.zeros((len(keep), self.vocab_size), np.float32)
        for row, index in enumerate(keep):
            logits[row, answers[index % len(tokens)]] = 1
        position = state["position"] + len(tokens)
        return logits, {"last": np.array([last]), "follower": follower, "position": position}

    def to_arrays(self, state: State) -> Arrays:
        """Copies."""
        return {name: np.array(value) for name, value in state.items()}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Copies."""
        return {name: np.array(value) for name, value in arrays.items()}

    def close(self) -> None:
        """Set `closed`."""
        self.closed = True
