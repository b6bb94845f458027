"""Answers, decoded token by token and streamed as text. It knows a backend by its Protocol.

for piece in answer:
    print(piece, end="")
answer.text, answer.finish
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longspan.bundle import Manifest
from longspan.errors import BadInput
from longspan.runtime.backends import Backend, State, Steps
from longspan.runtime.room import Room
from longspan.runtime.sampling import Sampler
from longspan.runtime.tokens import TextStream

Finish = Literal["stop", "eos", "length", "room", "cancelled"]

DEFAULT_MAX_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Where an answer ends: at a stop string, at the token `eos`, or after `max_tokens`."""

    stop: tuple[str, ...]
    eos: int | None
    max_tokens: int

    @classmethod
    def of(cls, manifest: Manifest, *, stop: str | Sequence[str] | None, max_tokens: int) -> Ending:
        """The end of an answer of the bundle of `manifest`; `stop` None for the bundle's own.

        Raises:
            BadInput: a stop string is empty, or `max_tokens` is below 1.
        """
        if isinstance(stop, str):
            stop = (stop,)
        stops = manifest.prompt.stop if stop is None else tuple(stop)
        return cls(stop=stops, eos=manifest.eos, max_tokens=max_tokens)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            BadInput: a stop string is empty, or `max_tokens` is below 1.
        """
        if self.max_tokens < 1:
            raise BadInput(f"max_tokens is {self.max_tokens}; it must be 1 or more. Try 128.")
        if "" in self.stop:
            raise BadInput(
                "A stop string is empty, and every answer would end at once. Give the text that "
                "ends an answer, or stop=() for none."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftReport:
    """What drafts did for an answer.

    Attributes:
        proposed: tokens that a draft model guessed.
        accepted: those of them that the model itself chose.
        forwards: passes of the model for the answer, after the question.
        draft_forwards: passes of the draft model, the question among them.
        tokens: of the answer.
    """

    proposed: int
    accepted: int
    forwards: int
    draft_forwards: int
    tokens: int

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the guesses that were accepted, 0 to 1; None where nothing was guessed."""
        return self.accepted / self.proposed if self.proposed else None

    def to_json(self) -> dict[str, Any]:
        """The report as data."""
        return asdict(self) | {"acceptance_rate": self.acceptance_rate}

    def text(self) -> str:
        """The report for people."""
        rate = "" if self.acceptance_rate is None else f" ({self.acceptance_rate:.0%})"
        return (
            f"{self.tokens:,} tokens in {self.forwards:,} passes: {self.accepted:,} of "
            f"{self.proposed:,} drafted tokens accepted{rate}, in {self.draft_forwards:,} passes "
            "of the draft model."
        )


@dataclass(slots=True, kw_only=True)
class Decoding:
    """Tokens one at a time, from the logits and the state after the question.

    Attributes:
        get_backend: gives what computes.
        seconds: spent in choosing and computing, not in waiting for the caller.
        tokens: chosen so far, an `eos` not counted.
        steps: times that the model computed; the first token needs none.
        finish: why it ended, once it has.
        room: that the caches have before the next step.
    """

    get_backend: Callable[[], Backend]
    sampler: Sampler
    rng: np.random.Generator
    ending: Ending
    room: Room
    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    finish: Finish | None = None

    @property
    def draft(self) -> DraftReport | None:
        """What drafts did so far; None where there are none."""
        return None

    def run(self, logits: NDArray[np.float32], state: State) -> Generator[int]:
        """The tokens; the model computes the next one only when it is asked for."""
        token = self._pick(logits)
        if not (yield from self._say(token)):
            return
        started = time.perf_counter()
        with closing(self.get_backend().steps(state, donate=True)) as steps:
            del state
            self.seconds += time.perf_counter() - started
            while True:
                token = self._pick(self._step(steps, token))
                if not (yield from self._say(token)):
                    return

    def _say(self, token: int) -> Generator[int, None, bool]:
        """Give out a token; whether the answer goes on after it."""
        if token == self.ending.eos:
            self.finish = "eos"
            return False
        self.tokens += 1
        yield token
        if self.tokens == self.ending.max_tokens:
            self.finish = "length"
            return False
        self.room = self.room.after(np.array([token], np.int64))
        if not self.room.fits:
            self.finish = "room"
            return False
        self.get_backend()  # refuses to go on where it was closed meanwhile
        return True

    def _pick(self, logits: NDArray[np.float32]) -> int:
        started = time.perf_counter()
        token = self.sampler.pick(logits, self.rng)
        self.seconds += time.perf_counter() - started
        return token

    def _step(self, steps: Steps, token: int) -> NDArray[np.float32]:
        started = time.perf_counter()
        logits = steps.step(token)
        self.seconds += time.perf_counter() - started
        self.steps += 1
        return logits


@dataclass(slots=True)
class StopText:
    """Text up to the first stop string; what may be the start of one is held back until sure."""

    stop: tuple[str, ...]
    stopped: bool = False
    _held: str = ""

    def push(self, text: str) -> str:
        """The text that is certain now."""
        self._held += text
        ends = [at for stop in self.stop if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._release(min(ends))
        return self._release(len(self._held) - self._doubtful())

    def rest(self) -> str:
        """What is still held back, once no more text comes."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _doubtful(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self.stop):
                return count
        return 0


class Answer:
    """An answer: iterating it computes and yields its text; after that it can be looked at.

    Leaving the loop early cancels it, at once with `contextlib.closing(iter(answer))`. Iterating
    again yields the same pieces.

    Attributes:
        finish: why it ended: "stop" at a stop string, "eos", "length" after `max_tokens`,
            "room" where the caches are full, "cancelled"; None before it has.
        seconds: from the start of the iteration to its end, reading the question included.
        first_token_seconds: from the start to the first token; None before.
    """

    def __init__(
        self,
        start: Callable[[], tuple[NDArray[np.float32], State]],
        decoding: Decoding,
        stream: TextStream,
        *,
        on_end: Callable[[Decoding], None],
    ) -> None:
        self.finish: Finish | None = None
        self.seconds = 0.0
        self.first_token_seconds: float | None = None
        self._start = start
        self._decoding = decoding
        self._stream = stream
        self._on_end = on_end
        self._pieces: list[str] = []
        self._begun = False

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    @property
    def tokens(self) -> int:
        """Tokens decoded so far, those of a stop string included, an end token not."""
        return self._decoding.tokens

    @property
    def draft(self) -> DraftReport | None:
        """What the draft model's guesses did so far; None without one."""
        return self._decoding.draft

    def read(self) -> str:
        """The whole text, computed if need be."""
        return "".join(self)

    def __iter__(self) -> Generator[str]:
        if self._begun:
            yield from self._pieces
            return
        self._begun = True
        started = time.perf_counter()
        try:
            with closing(self._texts(started)) as texts:
                for piece in texts:
                    self._pieces.append(piece)
                    yield piece
        finally:
            self.finish = self.finish or "cancelled"
            self.seconds = time.perf_counter() - started
            self._on_end(self._decoding)

    def _texts(self, started: float) -> Generator[str]:
        text, spaced = StopText(self._decoding.ending.stop), False
        with closing(self._decoded(started)) as pieces:
            for new in pieces:
                if new and not spaced:
                    new, spaced = new.removeprefix(" "), True
                if certain := text.push(new):
                    yield certain
                if text.stopped:
                    self.finish = "stop"
                    return
        self.finish = self._decoding.finish
        if rest := text.rest():
            yield rest

    def _decoded(self, started: float) -> Generator[str]:
        """The text of each token, and what is left of it after the last."""
        with closing(self._decoding.run(*self._start())) as tokens:
            for token in tokens:
                if self.first_token_seconds is None:
                    self.first_token_seconds = time.perf_counter() - started
                yield self._stream.push(token)
        yield self._stream.rest()


def format_question(template: str, question: str) -> str:
    """Put a question into a template.

    Raises:
        BadInput: the question is empty or no text, or the template has no place for it.
    """
    if any("\ud800" <= char <= "\udfff" for char in template + question):
        raise BadInput(
            f"The question {question!r} holds half of a surrogate pair, and so is no text. In a "
            "terminal that is not UTF-8, set LC_ALL=C.UTF-8; elsewhere decode its bytes again."
        )
    if not question.strip():
        raise BadInput("The question is empty. Ask something, as in: longspan ask ... 'Who?'")
    if "{question}" not in template:
        raise BadInput(
            f"The template {template!r} has no place for the question. Write {{question}} where "
            "it goes."
        )
    return template.replace("{question}", question)
