"""Greedy speculative decoding (arXiv 2211.17192; with bytes, MambaByte, arXiv 2401.13660).

A draft model guesses the next tokens. The model reads them in one pass, keeps those that it would
have chosen itself, and adds its own next one. So the answer is the model's own: its passes differ
from plain decoding's only as chunks do, by rounding. After a rejection the state is the one before
the pass, and the tokens that were kept go before the next guess, in the same pass.

MambaByte's paper accepts a byte that is among the model's three likeliest, which gives another
answer than the model's own; here only the likeliest is accepted.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from longspan.errors import BadInput
from longspan.runtime.asking import Decoding, DraftReport
from longspan.runtime.backends import State
from longspan.runtime.drafting import MAX_DRAFTED, Drafter

# Tokens that may go before a guess because their pass was rejected; more are read for good, in a
# pass of their own. Fewer would mean more passes, and more would make every pass longer.
MAX_WAITING = 8
NO_DRAFT = (
    "A draft model's memory was given, and no draft model is loaded. Load one with "
    "load(..., draft=BUNDLE) (--draft BUNDLE)."
)


@dataclass(slots=True, kw_only=True)
class SpeculativeDecoding(Decoding):
    """Decoding with drafts; `sampler` is greedy.

    Attributes:
        drafter: guesses.
        draft_tokens: how many tokens the draft model guesses at once, in its own tokens.
        chunk_tokens: most tokens of a pass.
        steps: tokens that a pass decided; the first takes none.
        forwards: passes of the model.
        proposed: tokens that were guessed.
        accepted: those that the model would have chosen.
    """

    drafter: Drafter
    draft_tokens: int
    chunk_tokens: int
    forwards: int = 0
    proposed: int = 0
    accepted: int = 0
    _waiting: list[int] = field(default_factory=list)

    @property
    def draft(self) -> DraftReport:
        """What the drafts did so far."""
        return DraftReport(
            proposed=self.proposed,
            accepted=self.accepted,
            forwards=self.forwards,
            draft_forwards=self.drafter.forwards,
            tokens=self.tokens,
        )

    def run(self, logits: NDArray[np.float32], state: State) -> Generator[int]:
        """The tokens; the model computes the next ones only when they are asked for."""
        decided = [self.sampler.pick(logits, self.rng)]
        while True:
            for token in decided:
                if not (yield from self._say(token)):
                    return
            started = time.perf_counter()
            decided, state = self._round(decided, state)
            self.steps += len(decided)
            self.seconds += time.perf_counter() - started

    def _round(self, decided: list[int], state: State) -> tuple[list[int], State]:
        """The next tokens after `decided`, and the state after all but those in `_waiting`."""
        drafted = self._drafted(decided)
        self._waiting.append(decided[-1])
        rows, after = self._read([*self._waiting, *drafted], state, keep=len(drafted) + 1)
        agreed, own = self._agreed(drafted, rows)
        self.proposed += len(drafted)
        self.accepted += agreed
        if agreed == len(drafted):
            self._waiting.clear()
            return [*drafted, own], after
        del after  # before another one is made: the plan has room for two
        self._waiting += drafted[:agreed]
        if len(self._waiting) > self._most_waiting:
            _, state = self._read(self._waiting, state, keep=0, donate=True)
            self._waiting.clear()
        return [*drafted[:agreed], own], state

    @property
    def _most_waiting(self) -> int:
        """A pass is never longer than a chunk, and leaves room in it for a guess."""
        return min(MAX_WAITING, (self.chunk_tokens - 1) // 2)

    def _drafted(self, decided: Sequence[int]) -> list[int]:
        """A guess at what follows `decided`, as long as a pass, the answer and the caches allow."""
        left = self.ending.max_tokens - self.tokens - 1
        limit = min(left, self.chunk_tokens - len(self._waiting) - 1, MAX_DRAFTED)
        if limit < 1:
            return []
        drafted = self.drafter.propose(decided, tokens=self.draft_tokens, limit=limit)
        while drafted and not self.room.after(np.array(drafted, np.int64)).fits:
            drafted.pop()
        return drafted

    def _agreed(self, drafted: Sequence[int], rows: NDArray[np.float32]) -> tuple[int, int]:
        """How many drafted tokens are the model's own choice, and its choice after them."""
        for count, token in enumerate(drafted):
            own = self.sampler.pick(rows[count], self.rng)
            if own != token:
                return count, own
        return len(drafted), self.sampler.pick(rows[-1], self.rng)

    def _read(
        self, tokens: Sequence[int], state: State, *, keep: int, donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """Logits float32 [keep, V] of the last tokens, and the state after all; one pass."""
        self.forwards += 1
        wanted = range(len(tokens) - keep, len(tokens))
        ids = np.array(tokens, np.int64)
        return self.get_backend().forward(ids, state, keep=wanted, donate=donate)


def with_drafts(
    decoding: Decoding, drafter: Drafter, draft_tokens: int, chunk_tokens: int
) -> SpeculativeDecoding:
    """The same decoding with drafts.

    Args:
        decoding: not begun.
        drafter: guesses.
        draft_tokens: how many tokens the draft model guesses at once, >= 1.
        chunk_tokens: most tokens of a pass.

    Raises:
        BadInput: the temperature is above 0, or `draft_tokens` below 1.
    """
    if decoding.sampler.temperature > 0:
        raise BadInput(
            f"temperature is {decoding.sampler.temperature}, and a draft model is loaded. A draft "
            "is accepted where it is the most probable token, so the temperature must be 0. Leave "
            "it out, or load without a draft model (--draft) to draw at random."
        )
    if draft_tokens < 1:
        raise BadInput(f"draft_tokens is {draft_tokens}; it must be 1 or more. Try 4.")
    return SpeculativeDecoding(
        get_backend=decoding.get_backend,
        sampler=decoding.sampler,
        rng=decoding.rng,
        ending=decoding.ending,
        room=decoding.room,
        drafter=drafter,
        draft_tokens=draft_tokens,
        chunk_tokens=chunk_tokens,
    )
