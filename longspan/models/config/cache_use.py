"""How many entries the caches of a model need, counted on the host before anything runs.

use = CacheUse.of(config)               # nothing read
use.after(tokens).entries <= capacity   # whether these tokens may be read
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.models.config.attention import FullAttentionConfig
from longspan.models.config.model import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """What the caches of one sequence need.

    Attributes:
        entries: the most that any cache has needed so far; every cache has room for as many.
        per_token: entries that a token takes: 1 where a layer attends to every token, else 0.
    """

    entries: int
    per_token: int

    @classmethod
    def of(cls, config: ModelConfig, state: Mapping[str, NDArray[Any]] | None = None) -> CacheUse:
        """The use of `state`, as `Backend.to_arrays` gives it; None for nothing read."""
        counters = {spec.counter for spec in config.state_layout("float32") if spec.counter}
        used = () if state is None else (int(state[counter][0]) for counter in counters)
        full = any(isinstance(layer, FullAttentionConfig) for layer in config.layers)
        return cls(entries=max(used, default=0), per_token=int(full))

    def after(self, tokens: NDArray[np.int64]) -> CacheUse:
        """The use once `tokens` int64 [L] are read, in chunks of any length."""
        return replace(self, entries=self.entries + self.per_token * len(tokens))
