"""The choice of the next token from its logits. numpy only.

sampler = Sampler(temperature=0.8, top_p=0.95)
token = sampler.pick(logits, np.random.default_rng(seed))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longspan.errors import BadInput


def new_rng(seed: int | None) -> np.random.Generator:
    """What draws tokens: the same from the same seed, a fresh one without.

    Raises:
        BadInput: the seed is negative.
    """
    if seed is not None and seed < 0:
        raise BadInput(f"seed is {seed}; it must be 0 or more. Leave it out for a fresh one.")
    return np.random.default_rng(seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most probable token; above 0 draws from softmax(logits / t).
        top_k: draw from the k most probable tokens only; None for all.
        top_p: draw from the fewest tokens whose probabilities reach p, 0 < p <= 1.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            BadInput: a value is out of its range.
        """
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(
                f"temperature is {self.temperature}; it must be 0 (the most probable token) or "
                "more. Try 0.7."
            )
        if self.top_k is not None and self.top_k < 1:
            raise BadInput(f"top_k is {self.top_k}; it must be 1 or more. Leave it out for all.")
        if not 0 < self.top_p <= 1:
            raise BadInput(
                f"top_p is {self.top_p}; it must be above 0 and at most 1. Leave it out for all."
            )

    def pick(self, logits: NDArray[np.float32], rng: np.random.Generator) -> int:
        """The next token's id.

        Args:
            logits: float32 [V].
            rng: drawn from once when `temperature` is above 0, and not at all when it is 0.

        Raises:
            BadInput: a logit is not a number.
        """
        if np.isnan(logits).any():
            raise BadInput(
                "The model gave logits that are not numbers, so no token can be chosen. Check "
                "the bundle with: longspan verify BUNDLE"
            )
        if self.temperature == 0:
            return int(np.argmax(logits))
        order, weights = self._candidates(logits)
        drawn = rng.random() * weights.sum()
        return int(
            order[min(int(np.searchsorted(weights.cumsum(), drawn, "right")), len(order) - 1)]
        )

    def _candidates(
        self, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids int64 [n], most probable first, and their weights float64 [n]."""
        order = np.argsort(-logits, kind="stable")[: self.top_k].astype(np.int64, copy=False)
        above = logits[order].astype(np.float64)
        # The difference first: a tiny temperature makes infinities of the logits themselves.
        with np.errstate(over="ignore"):
            weights = np.exp((above - above[0]) / self.temperature)
        weights /= weights.sum()
        enough = int(np.searchsorted(weights.cumsum(), self.top_p, "left")) + 1
        return order[:enough], weights[:enough]
