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
from longspan.models.config import FullAttentionConfig, ModelConfig
from longspan.runtime.backends import Arrays, State, Steps
from longspan.runtime.backends.caches import padded
from longspan.runtime.backends.forward_steps import ForwardSteps

# A model whose state grows, with one number an entry.
CACHED_LAYER = FullAttentionConfig(n_heads=1, n_kv_heads=1, head_dim=1, rope_base=None)
# Stands in `follower` where a token was not followed yet, and in `last` before the first token.
_NONE = 0


class FakeBackend:
    """Says after each token what followed it before; any way of cutting gives the same.

    The state is ``last`` int64 [1] and ``follower`` int64 [V], both ids plus one and zero for
    none, and ``position`` int64 [1]: fixed sizes, as a model has.

    With a `capacity` it has the state of `CACHED_LAYER` too, and keeps every token in its caches.

    Args:
        vocab_size: V, at least 1.
        engine: the engine that it says it is.
        capacity: entries of each cache, C; None for a state of fixed size.
    """

    def __init__(
        self, vocab_size: int, *, engine: Engine = "onnx-cpu", capacity: int | None = None
    ) -> None:
        self.engine = engine
        self.vocab_size = vocab_size
        self.closed = False
        self.limit_bytes: int | None = None
        layers = () if capacity is None else (CACHED_LAYER,)
        self.config = ModelConfig(family="fake", vocab_size=vocab_size, d_model=1, layers=layers)
        self._caches = self.config.state_layout("float32", capacity or 0)

    def new_state(self) -> State:
        """Nothing read."""
        return {
            "last": np.zeros(1, np.int64),
            "follower": np.zeros(self.vocab_size, np.int64),
            "position": np.zeros(1, np.int64),
            **{spec.name: np.zeros(spec.shape, spec.dtype) for spec in self._caches},
        }

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """See `longspan.runtime.backends.Backend.forward`; the answer's logit is 1, the rest 0.

        Raises:
            ValueError: the caches have no room for the tokens.
        """
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
        fixed = {
            "last": np.array([last]),
            "follower": follower,
            "position": state["position"] + len(tokens),
        }
        after = fixed | self._cached(tokens, state)
        if donate:
            state.clear()
        return logits, after

    def _cached(self, tokens: NDArray[np.int64], state: State) -> Arrays:
        """The caches with the tokens after those in use, and the counter."""
        after: Arrays = {}
        for spec in self._caches:
            after[spec.name] = np.array(state[spec.name])
            if spec.counter is None:
                after[spec.name] += len(tokens)
            else:
                used = int(state[spec.counter][0])
                after[spec.name][:, used : used + len(tokens), 0, 0] = tokens
        return after

    def steps(self, state: State, *, donate: bool = False) -> Steps:
        """See `longspan.runtime.backends.Backend.steps`."""
        return ForwardSteps(self, state, donate=donate)

    def to_arrays(self, state: State) -> Arrays:
        """Copies; of caches, the entries in use."""
        arrays = {name: np.array(value) for name, value in state.items()}
        for spec in self._caches:
            if spec.counter is not None:
                arrays[spec.name] = arrays[spec.name][:, : int(arrays[spec.counter][0])]
        return arrays

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Copies.

        Raises:
            DoesNotFit: a cache has more entries in use than there is room for.
        """
        caches = {spec.name: padded(arrays, spec) for spec in self._caches}
        return {name: np.array(value) for name, value in ({**arrays} | caches).items()}

    def release(self, memory_limit_bytes: int | None) -> None:
        """Remember the limit."""
        self.limit_bytes = memory_limit_bytes

    def close(self) -> None:
        """Set `closed`."""
        self.closed = True
