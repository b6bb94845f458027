"""Chunked reading: tokens in, state out, at a memory that does not depend on their number.

It knows a backend by its Protocol, and nothing of files or tokenizers.

    result = read_chunks(backend, backend.new_state, cut_chunks(pieces, 512), after_chunk=show)
    result.logits      # float32 [V], for the token after the last
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.errors import BadDocument, BadInput
from longspan.runtime.backends import Backend, State
from longspan.runtime.checkpoint import Reached
from longspan.runtime.interrupts import interrupts_wait
from longspan.runtime.tokens import Place, TokenPiece, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a reading is.

    Attributes:
        tokens: tokens of this document read so far.
        bytes_done: UTF-8 bytes of its text read so far: exact where a token is a byte, else about.
        bytes_total: bytes of the whole text, or None where only the end will tell.
        seconds: since the reading began.
        tokens_per_second: in this reading; tokens read before an interruption do not count.
        memory_bytes: what the process holds on its device now.
        budget_bytes: what it may hold.
    """

    tokens: int
    bytes_done: int
    bytes_total: int | None
    seconds: float
    tokens_per_second: float
    memory_bytes: int
    budget_bytes: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Tokens int64 [L] that go through the model together.

    Attributes:
        tokens: int64 [L].
        last: whether the document ends here.
        place: start of the piece of text that holds the next token; the end after the last.
        begun: the first tokens of that piece, as far as they are in this chunk or before.
        bytes_done: UTF-8 bytes of text up to here: exact where a token is a byte, else about.
    """

    tokens: Tokens
    last: bool
    place: Place
    begun: Tokens
    bytes_done: int


def cut_chunks(
    pieces: Iterable[TokenPiece], chunk_tokens: int, *, begun: int = 0
) -> Iterator[Chunk]:
    """Regroup tokens into chunks of `chunk_tokens`; only the last may be shorter.

    Args:
        pieces: at least one token in all.
        chunk_tokens: at least 1.
        begun: tokens of the first piece that are read already.

    Raises:
        BadDocument: there is no token.
    """
    waiting: deque[TokenPiece] = deque()
    held = -begun
    piece = None
    for piece in pieces:
        waiting.append(piece)
        held += len(piece.tokens)
        # One token more than a chunk: then this chunk is not the last.
        while held > chunk_tokens:
            tokens, begun = _take(waiting, begun, chunk_tokens)
            held -= chunk_tokens
            yield _between(tokens, waiting[0], begun)
    if piece is None or held <= 0:
        raise BadDocument("The document has no tokens. Give a document with text in it.")
    tokens, _ = _take(waiting, begun, held)
    yield Chunk(
        tokens=tokens,
        last=True,
        place=piece.end,
        begun=tokens[:0],
        bytes_done=piece.end.text_bytes,
    )


def _take(waiting: deque[TokenPiece], begun: int, count: int) -> tuple[Tokens, int]:
    """`count` tokens off the front, and how many of the next piece are then gone."""
    parts = []
    while count or (waiting and begun == len(waiting[0].tokens)):
        part = waiting[0].tokens[begun : begun + count]
        parts.append(part)
        count, begun = count - len(part), begun + len(part)
        if begun == len(waiting[0].tokens):
            waiting.popleft()
            begun = 0
    return np.concatenate(parts), begun


def _between(tokens: Tokens, following: TokenPiece, begun: int) -> Chunk:
    start, end = following.start, following.end
    done = begun * (end.text_bytes - start.text_bytes) // len(following.tokens)
    return Chunk(
        tokens=tokens,
        last=False,
        place=start,
        begun=following.tokens[:begun],
        bytes_done=start.text_bytes + done,
    )


def tokens_sha256(tokens: Tokens) -> str:
    """Hex SHA-256 of token ids, as little-endian int64."""
    return hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadResult:
    """What reading leaves on the device.

    Attributes:
        state: after the last token.
        logits: float32 [V], for the token after the last.
        tokens: tokens of this document that are in the state.
        end: bytes and SHA-256 of the whole text.
    """

    state: State
    logits: NDArray[np.float32]
    tokens: int
    end: Place


def read_chunks(
    backend: Backend,
    start: Callable[[], State],
    chunks: Iterable[Chunk],
    *,
    tokens_before: int = 0,
    after_chunk: Callable[[State, int, Chunk], None],
    on_interrupt: Callable[[State, Reached], None] | None = None,
) -> ReadResult:
    """Feed chunks to a backend; only the last token's logits are computed.

    Each chunk is given the state of the one before, so that there are never two. Ctrl-C waits until
    a chunk is through; a second one ends the chunk, and the state with it.

    Args:
        backend: what computes.
        start: gives the state before the first chunk, which nobody else then holds.
        chunks: at least one, the last marked.
        tokens_before: tokens of this document that are in that state.
        after_chunk: called with the state, the tokens read so far, and the chunk.
        on_interrupt: called with the state after the last whole chunk, if that was not the last
            one, when anything is raised between two chunks; what was raised goes on.
    """
    state, tokens, chunk = start(), tokens_before, None
    try:
        for following in chunks:
            keep = [-1] if following.last else []
            with interrupts_wait():
                # Until the call returns, there is no state to go on from.
                chunk = None
                logits, state = backend.forward(following.tokens, state, keep=keep, donate=True)
                chunk, tokens = following, tokens + len(following.tokens)
            after_chunk(state, tokens, chunk)
    except BaseException:
        if on_interrupt is not None and chunk is not None and not chunk.last:
            on_interrupt(state, reached_by(chunk, tokens))
        raise
    assert chunk is not None, "cut_chunks yields at least one chunk"
    return ReadResult(state=state, logits=logits[-1], tokens=tokens, end=chunk.place)


def reached_by(chunk: Chunk, tokens: int) -> Reached:
    """How far a document is read after `chunk`, with `tokens` of it in the state."""
    return Reached(
        tokens=tokens,
        place=chunk.place,
        begun=len(chunk.begun),
        begun_sha256=tokens_sha256(chunk.begun),
    )


def feed(
    backend: Backend, state: State, tokens: Tokens, chunk_tokens: int, *, donate: bool
) -> tuple[NDArray[np.float32], State]:
    """Read `tokens` int64 [L], L >= 1, in chunks; the last one's logits float32 [V].

    The state before them stays as it was unless it is given away (`donate`).
    """
    for first in range(0, len(tokens), chunk_tokens):
        end = first + chunk_tokens
        keep = [-1] if end >= len(tokens) else []
        own = donate or first > 0
        logits, state = backend.forward(tokens[first:end], state, keep=keep, donate=own)
    return logits[-1], state


def every_logits(backend: Backend, tokens: Tokens, chunk_tokens: int) -> NDArray[np.float32]:
    """Logits float32 [L, V] after every one of `tokens` int64 [L], L >= 1, from the empty state."""
    state, rows = backend.new_state(), []
    for start in range(0, len(tokens), chunk_tokens):
        chunk = tokens[start : start + chunk_tokens]
        logits, state = backend.forward(chunk, state, keep=range(len(chunk)), donate=True)
        rows.append(logits)
    return np.concatenate(rows)


def check_tokens(tokens: NDArray[Any], vocab_size: int) -> Tokens:
    """Token ids as int64 [L], each within the vocabulary.

    Raises:
        BadInput: they are not whole numbers in one row, or one is outside.
    """
    if tokens.ndim != 1 or (len(tokens) and tokens.dtype.kind not in "iu"):
        raise BadInput(
            f"Tokens must be whole numbers in one row; they are {tokens.dtype} "
            f"{list(tokens.shape)}. Give a list of ids."
        )
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(outside):
        raise BadInput(
            f"Token {int(outside[0])} is not in the model's vocabulary: ids go from 0 to "
            f"{vocab_size - 1}. Check that the tokenizer is the model's own."
        )
    return tokens.astype(np.int64, copy=False)
