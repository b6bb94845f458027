"""The text that facts are hidden in, cut or repeated to a length. Nothing holds all of it.

text = language_reference()
long = filler(text, tokens=2**20, tokenizer=tokenizer)
long.repeats                   # 6.9: the text six times, and most of it once more
long.holding(quiz.facts)       # a Document
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from longspan.errors import BadDocument, BadInput
from longspan.runtime.documents import Document, open_document
from longspan.runtime.tokens import Tokenizer, tokenize
from longspan.tasks import Fact, hide

# Less is no long text: what is asked for would stand before the question.
LEAST_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Filler:
    """A text of a certain length.

    Attributes:
        document: the text; `bytes_total` is known.
        tokens: about so many of it were asked for; None for the text as it is.
        repeats: how many times it is read; below 1 where only its start is.
    """

    document: Document
    tokens: int | None
    repeats: float

    def holding(self, facts: Iterable[Fact]) -> Document:
        """The text with facts in it, as it will be read."""
        total = self.document.bytes_total
        assert total is not None, "a filler's length is known"
        told, pieces = tuple(facts), self.document.pieces
        return replace(self.document, pieces=lambda: hide(pieces(), told, total_bytes=total))


def language_reference() -> Document:
    """The topics of Python's language reference, one after another, as `help()` shows them.

    Raises:
        BadDocument: this Python ships without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise BadDocument(
            "The demo reads the language reference in `pydoc_data`, and this Python has none. "
            "Name a text of your own: longspan demo --document FILE"
        ) from error
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return replace(open_document(text), name="Python's language reference")


def filler(text: Document, *, tokens: int | None, tokenizer: Tokenizer) -> Filler:
    """A text as it is, its start, or the text over and over.

    Args:
        text: read from its start at least twice.
        tokens: about so many tokens of it; None for the text as it is.
        tokenizer: counts them.

    Raises:
        BadDocument: the text can be read only once, or is shorter than `LEAST_TOKENS`.
        BadInput: `tokens` is smaller than `LEAST_TOKENS`.
    """
    if tokens is not None and tokens < LEAST_TOKENS:
        raise BadInput(
            f"--tokens asks for {tokens:,} tokens; the demo reads {LEAST_TOKENS} or more. Try 16K."
        )
    size = text.bytes_total
    if not text.again or size is None:
        raise BadDocument(
            f"The document {text.name} can be read only once, and the demo counts its tokens "
            "before it reads it. Save it as a file, and name that with --document FILE."
        )
    limit = _limit_bytes(text, size, tokens, tokenizer)
    if tokens is None:
        return Filler(document=text, tokens=None, repeats=1.0)
    document = replace(
        text, bytes_total=limit, pieces=lambda: first_bytes(repeated(text.pieces), limit)
    )
    return Filler(document=document, tokens=tokens, repeats=limit / size)


def _limit_bytes(text: Document, size: int, tokens: int | None, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of about `tokens` tokens, counted by pieces and shared out within one."""
    have = 0
    for piece in tokenize(text.pieces(), tokenizer):
        if tokens is not None and have + len(piece.tokens) >= tokens:
            piece_bytes = piece.end.text_bytes - piece.start.text_bytes
            return piece.start.text_bytes + piece_bytes * (tokens - have) // len(piece.tokens)
        have += len(piece.tokens)
        if tokens is None and have >= LEAST_TOKENS:
            return size
    if have < LEAST_TOKENS:
        raise BadDocument(
            f"The document {text.name} has {have:,} tokens; the demo hides facts in a text of "
            f"{LEAST_TOKENS} or more. Name a longer one with --document FILE."
        )
    assert tokens is not None, "a text that is read as it is was long enough"
    return size * tokens // have


def repeated(pieces: Callable[[], Iterable[str]]) -> Iterator[str]:
    """A text over and over, each time from the start of a line."""
    last = "\n"
    while True:
        if last != "\n":
            yield "\n"
        for piece in pieces():
            last = piece[-1:] or last
            yield piece


def first_bytes(pieces: Iterable[str], limit: int) -> Iterator[str]:
    """The first `limit` UTF-8 bytes of a text, without half a character at the end."""
    for piece in pieces:
        data = piece.encode()
        if len(data) >= limit:
            yield data[:limit].decode(errors="ignore")
            return
        limit -= len(data)
        yield piece
