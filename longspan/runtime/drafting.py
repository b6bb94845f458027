"""Drafts of an answer's next tokens, by a smaller model that was loaded beside the answering one.

A draft is a guess: `longspan.runtime.speculative` has the model itself accept or reject each token,
so nothing here can change an answer. The draft model reads the question and then the answer as it
comes, from a memory of its own or from nothing. After a rejection it goes on from its state before
the guess, which was kept: states are values.

    drafter = draft.drafter(prompt, None, runtime.bundle, runtime.tokenizer)
    drafter.propose([104, 101], tokens=4, limit=16)     # tokens that may follow these two
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longspan.bundle import Bundle, Manifest
from longspan.errors import BadInput
from longspan.runtime.backends import Backend, State, Steps
from longspan.runtime.byte_tokens import bundle_tokenizer
from longspan.runtime.memory import Memory, check_origin, load_memory
from longspan.runtime.plan import Plan
from longspan.runtime.plan_items import STATE_COPIES, PlanItem
from longspan.runtime.reading import feed
from longspan.runtime.tokens import TextStream, Tokenizer, Tokens, last_place

DEFAULT_DRAFT_TOKENS = 4
# Most tokens that are proposed at once; each takes a row of logits.
MAX_DRAFTED = 32
# float32 on the device and in the caller's hands.
LOGITS_BYTES = 4 + 4
# A draft model reads questions and answers: larger chunks would take memory for nothing.
CHUNK_TOKENS = 64
# Characters of the answer that a draft model with other tokens reads anew for each draft, at most:
# the end of a text has other tokens once more text follows.
REREAD_CHARACTERS = 64
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A draft model, loaded.

    Attributes:
        bundle: what was loaded.
        plan: where its bytes go.
        backend: what computes.
    """

    bundle: Bundle
    plan: Plan
    backend: Backend

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer.

        Raises:
            BadInput: the bundle has none.
        """
        return bundle_tokenizer(self.bundle)

    def open(self, path: str | Path) -> Memory:
        """Read a memory that the draft model's own runtime wrote.

        Raises:
            BadMemory: the file is missing, no memory, damaged, newer, or of another model or
                tokenizer.
        """
        return load_memory(path, self.bundle.manifest)

    def drafter(
        self, prompt: str, memory: Memory | None, target: Bundle, tokenizer: Tokenizer
    ) -> Drafter:
        """A drafter of one answer.

        Args:
            prompt: what stands before the answer, after what is in `memory`.
            memory: what the draft model read; None for nothing.
            target: the bundle that answers.
            tokenizer: of that bundle.

        Raises:
            BadInput: the bundle has no tokenizer.
            BadMemory: the memory is another model's.
        """
        manifest = self.bundle.manifest
        if memory is not None:
            check_origin("The draft model's memory", memory.origin, manifest)
        same = target.manifest.tokenizer_fingerprint() == manifest.tokenizer_fingerprint()
        read = memory is not None and memory.tokens > 0
        return (TokenDrafter if same else TextDrafter)(
            self,
            self.tokenizer.encode(prompt, continues=read),
            memory,
            tokenizer=tokenizer,
            vocab_size=target.manifest.config.vocab_size,
        )


def require_fixed_state(draft: Bundle) -> None:
    """Refuse a draft model whose state grows.

    Raises:
        BadInput: it does.
    """
    if draft.manifest.cache_entry_bytes:
        raise BadInput(
            f"{draft.path} was asked for as a draft model, and its state grows with what it reads. "
            "A draft model's state must have a fixed size. Choose a bundle without attention to "
            "the whole text."
        )


def draft_items(manifest: Manifest, draft: Bundle, plan: Plan) -> tuple[PlanItem, ...]:
    """What a draft model takes beside the model of `manifest`, where `plan` is its own alone.

    Both keep the state before a guess. The engines whose plan holds one state alone hold it beside.
    """
    # The first is the interpreter or the context, which is there once.
    _, *rest = plan.items
    own = sum(item.bytes for item in rest)
    logits = (MAX_DRAFTED + 1) * manifest.config.vocab_size * LOGITS_BYTES
    items = [
        PlanItem(name=f"draft model {draft.path.name}", bytes=own, stage="loaded"),
        PlanItem(name="logits of drafted tokens", bytes=logits),
    ]
    if STATE_COPIES[plan.engine] == 1:
        kept = manifest.state_bytes + draft.manifest.state_bytes
        items.append(PlanItem(name="states before a guess", bytes=kept))
    return tuple(items)


class Drafter(ABC):
    """Drafts one answer.

    Attributes:
        forwards: times that the draft model computed.
    """

    def __init__(
        self,
        draft: Draft,
        prompt: Tokens,
        memory: Memory | None,
        *,
        tokenizer: Tokenizer,
        vocab_size: int,
    ) -> None:
        self.forwards = 0
        self._backend = draft.backend
        self._chunk_tokens = draft.plan.chunk_tokens
        self._eos = draft.bundle.manifest.eos
        self._own_vocab_size = draft.bundle.manifest.config.vocab_size
        self._own_tokenizer = draft.tokenizer
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._prompt = prompt
        self._memory = memory
        self._state: State | None = None

    def propose(self, decided: Sequence[int], *, tokens: int, limit: int) -> list[int]:
        """Tokens that may follow.

        Args:
            decided: tokens of the answer since the last call.
            tokens: how many the draft model guesses, in its own tokens.
            limit: most tokens to propose, in those of the model that answers.
        """
        guessed = self._guess(decided, tokens, limit)[:limit]
        return list(takewhile(lambda token: token < self._vocab_size, guessed))

    @abstractmethod
    def _guess(self, decided: Sequence[int], tokens: int, limit: int) -> list[int]:
        """Tokens that may follow; those beyond `limit` are of no use."""

    def _before(self) -> State:
        """The state after all that was read for good, the prompt first."""
        if self._state is None:
            self._state = (
                self._backend.new_state()
                if self._memory is None
                else self._backend.from_arrays(self._memory.state)
            )
            self._advance(self._prompt)
        return self._state

    def _advance(self, tokens: Tokens) -> None:
        """Read tokens for good."""
        if len(tokens):
            _, self._state = self._read(tokens, donate=True)

    def _read(self, tokens: Tokens, *, donate: bool) -> tuple[NDArray[np.float32], State]:
        """Read tokens after `_before`, whose state goes with `donate`."""
        self.forwards += -(-len(tokens) // self._chunk_tokens)
        return feed(self._backend, self._before(), tokens, self._chunk_tokens, donate=donate)

    def _greedy(
        self, logits: NDArray[np.float32], state: State, count: int, *, donate: bool
    ) -> list[int]:
        """The draft model's own next tokens, fewer where it would end the answer."""
        drafted: list[int] = []
        with ExitStack() as stack:
            steps: Steps | None = None
            while (token := int(np.argmax(logits))) != self._eos:
                drafted.append(token)
                if len(drafted) == count:
                    break
                if steps is None:
                    begun = self._backend.steps(state, donate=donate)
                    steps = stack.enter_context(closing(begun))
                logits = steps.step(token)
                self.forwards += 1
        return drafted


class TokenDrafter(Drafter):
    """The draft model has the same tokens: its guess is the proposal."""

    _lost = False

    def _guess(self, decided: Sequence[int], tokens: int, limit: int) -> list[int]:
        # One vocabulary may be padded further than the other.
        self._lost = self._lost or max(decided) >= self._own_vocab_size
        if self._lost:
            return []
        logits, self._state = self._read(np.array(decided, np.int64), donate=True)
        return self._greedy(logits, self._state, min(tokens, limit), donate=False)


class TextDrafter(Drafter):
    """The draft model has other tokens: the answer's text is tokenized for it, and its guess back.

    It guesses nothing while a character of the answer lacks bytes, and its guess ends before the
    first character that lacks some.
    """

    _text = ""

    def _guess(self, decided: Sequence[int], tokens: int, limit: int) -> list[int]:
        del limit
        self._text += "".join(self._stream.push(token) for token in decided)
        if self._stream.pending:
            return []
        own = self._own_tokenizer
        if len(self._text) > REREAD_CHARACTERS:
            at = last_place(self._text, 0, len(self._text) - 1, own.cut_marks)
            self._advance(own.encode(self._text[:at], continues=True))
            self._text = self._text[at:]
        read = own.encode(self._text, continues=True)
        if not len(read):
            return []
        drafted = self._greedy(*self._read(read, donate=False), tokens, donate=True)
        known, guessed = own.decode(read), own.decode([*read, *drafted])
        if not guessed.startswith(known):
            return []
        text = guessed[len(known) :].partition(_REPLACEMENT)[0]
        return [int(token) for token in self._tokenizer.encode(text, continues=True)]

    @cached_property
    def _stream(self) -> TextStream:
        return self._tokenizer.stream()
