"""One reading of one document: chunks, progress, budget, checkpoints.

reader = Reader(backend, watch, room, chunk_tokens=512, on_progress=None)
result = reader.read(document, tokenizer, backend.new_state, found=None, continues=False,
                     on_notice=print)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from longspan.errors import BadMemory, BudgetExceeded
from longspan.runtime.backends import Backend, State
from longspan.runtime.checkpoint import Checkpoint, Keeper, Reached, not_used
from longspan.runtime.documents import Document
from longspan.runtime.measured import BudgetWatch
from longspan.runtime.reading import (
    Chunk,
    OnProgress,
    Progress,
    ReadResult,
    cut_chunks,
    reached_by,
    read_chunks,
    tokens_sha256,
)
from longspan.runtime.room import Room
from longspan.runtime.tokens import (
    Place,
    TextDiffersError,
    Tokenizer,
    TokenPiece,
    Tokens,
    tokenize,
)

OnNotice = Callable[[str], None]


@dataclass(slots=True)
class Reader:
    """Reads one document on `backend`, and watches the budget after each chunk.

    Attributes:
        room: that the caches have before the document.
        kept: how far the checkpoint is; None where there is none of this document.
        tokens: tokens that were computed; those before an interruption do not count.
        seconds: since the reading began.
    """

    backend: Backend
    watch: BudgetWatch
    room: Room
    chunk_tokens: int
    on_progress: OnProgress | None
    keeper: Keeper | None = None
    bytes_total: int | None = None
    kept: Reached | None = None
    tokens: int = 0
    _started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the reading began."""
        return time.perf_counter() - self._started

    def read(
        self,
        document: Document,
        tokenizer: Tokenizer,
        start: Callable[[], State],
        *,
        found: Checkpoint | None,
        continues: bool,
        on_notice: OnNotice,
    ) -> ReadResult:
        """Read a document from a state, or from a checkpoint of an earlier reading of it.

        Args:
            document: what to read.
            tokenizer: of the model.
            start: gives the state before the document.
            found: the checkpoint, if there is one that goes on from that state.
            continues: whether other text is in that state.
            on_notice: told whether the checkpoint is used.

        Raises:
            DoesNotFit: the caches have no room for the document; nothing was read if that could be
                known, and what was read is kept in a checkpoint otherwise.
            BadDocument: the document is empty, or not UTF-8 text.
            BadMemory: the checkpoint is of another text, and the document can be read only once.
            BudgetExceeded: the process holds more than the budget.
        """
        self.bytes_total = document.bytes_total
        if self.room.limited and document.again:
            room, tokens = self.room.after_document(document, tokenizer, continues=continues)
            room.require(f"The document {document.name}, of {tokens:,} tokens,")

        def pieces(after: Place | None) -> Iterator[TokenPiece]:
            return tokenize(document.pieces(), tokenizer, after=after, continues=continues)

        if found is not None and self.keeper is not None:
            resumed = resume(pieces(found.reached.place), found.reached)
            if resumed is not None:
                on_notice(f"Reading goes on after {found.reached.tokens:,} tokens.")
                reached, states = found.reached, [found.state]
                self.room = self.room.beside(found.state)
                del found  # or its arrays would stay beside the state that is made of them
                return self.read_pieces(
                    resumed, lambda: self.backend.from_arrays(states.pop()), reached=reached
                )
            refused = not_used(self.keeper.path, "It is of another text.")
            if not document.again:
                raise BadMemory(
                    f"{refused} But {document.name} can be read only once, and its start is "
                    "gone. Remove the checkpoint, and give the text again."
                )
            on_notice(refused)
        return self.read_pieces(pieces(None), start)

    def read_pieces(
        self,
        pieces: Iterable[TokenPiece],
        start: Callable[[], State],
        *,
        reached: Reached | None = None,
    ) -> ReadResult:
        """Read tokens from the state that `start` gives, of which `reached` are in it.

        Raises:
            BadDocument: there is no token.
            BudgetExceeded: the process holds more than the budget.
            DoesNotFit: the caches have no room for the next chunk.
        """
        begun, before = (reached.begun, reached.tokens) if reached else (0, 0)
        chunks = cut_chunks(pieces, self.chunk_tokens, begun=begun)
        self.kept = reached
        try:
            return read_chunks(
                self.backend,
                start,
                self.room.checked(chunks, before),
                tokens_before=before,
                after_chunk=self._after_chunk,
                on_interrupt=self._save if self.keeper else None,
            )
        except BudgetExceeded as error:
            error.args = (f"{error}{self._what_is_kept()}",)
            raise

    def _after_chunk(self, state: State, tokens: int, chunk: Chunk) -> None:
        self.tokens += len(chunk.tokens)
        memory_bytes = self.watch.require()
        if self.keeper is not None and self.keeper.due and not chunk.last:
            self._save(state, reached_by(chunk, tokens))
        if self.on_progress is not None:
            seconds = self.seconds
            self.on_progress(
                Progress(
                    tokens=tokens,
                    bytes_done=chunk.bytes_done,
                    bytes_total=self.bytes_total,
                    seconds=seconds,
                    tokens_per_second=self.tokens / seconds,
                    memory_bytes=memory_bytes,
                    budget_bytes=self.watch.budget_bytes,
                )
            )

    def _save(self, state: State, reached: Reached) -> None:
        if self.keeper is not None:
            self.keeper.save(self.backend.to_arrays(state), reached)
            self.kept = reached

    def _what_is_kept(self) -> str:
        """For a person whose reading ended: a chunk that fails takes the state with it."""
        if self.keeper is None:
            return ""
        if self.kept is None:
            return " Nothing of the document is kept: no checkpoint was due yet."
        return (
            f" The first {self.kept.tokens:,} tokens of the document are kept in "
            f"{self.keeper.path}: reading it again goes on from there."
        )


def resume(pieces: Iterator[TokenPiece], reached: Reached) -> Iterator[TokenPiece] | None:
    """The pieces from where a reading was, or None if the text before is another."""
    try:
        first = next(pieces)
    except TextDiffersError:
        return None
    if tokens_sha256(first.tokens[: reached.begun]) != reached.begun_sha256:
        return None
    return chain([first], pieces)


def token_pieces(arrays: Iterable[Tokens], *, dtype: str = "<i8") -> Iterator[TokenPiece]:
    """Token ids int64 [n] as pieces of a text whose bytes are the ids', as numpy's `dtype`."""
    hasher = hashlib.sha256()
    place = Place(text_bytes=0, text_sha256=hasher.hexdigest())
    for tokens in arrays:
        data = tokens.astype(dtype).tobytes()
        hasher.update(data)
        start, done = place, place.text_bytes + len(data)
        place = Place(text_bytes=done, text_sha256=hasher.hexdigest())
        yield TokenPiece(tokens=tokens, start=start, end=place)
