"""Text to tokens and back, as streams. No model, no files but the tokenizer's.

A `Tokenizer` is a file's (`FileTokenizer`) or bytes (`longspan.runtime.byte_tokens`).

A long text is tokenized in pieces, cut where the tokens of the whole are the tokens of the parts:
before a single space, or after a single line end, that stands between two other characters. No
token of a byte-level or SentencePiece BPE spans such a place: a pre-tokenizer's word may begin with
a space but never holds one inside. The cuts depend on the text alone.

    tokenizer = bundle_tokenizer(bundle)      # longspan.runtime.byte_tokens
    for piece in tokenize(document.pieces(), tokenizer):
        piece.tokens   # int64 [n]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as HuggingFaceTokenizer

from longspan.errors import BadBundle

Tokens = NDArray[np.int64]

# Characters a piece of text holds at most. Text without a place to cut is cut here anyway.
PIECE = 16_384
# Where to cut, counted from the mark: before a space, after a line end.
_MARKS = {" ": 0, "\n": 1}
# Each class of characters that pre-tokenizers tell apart.
_SIDES = "aZ1.!/'\"-(~"
# Put before a text that continues another, and taken away again, where they stay tokens apart.
_BEFORE = "\n.a0"
_REPLACEMENT = "\ufffd"


class TextStream(Protocol):
    """Turns an answer's tokens into text as they come; a character is never shown half."""

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character's bytes are missing."""

    def rest(self) -> str:
        """What is left to show once no more tokens come."""

    @property
    def pending(self) -> bool:
        """Whether a character waits for the rest of its bytes."""


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        cut_marks: characters at which `cut` may cut a text; empty where it may be cut anywhere.
    """

    cut_marks: str

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    def encode(self, text: str, *, continues: bool = False) -> Tokens:
        """Token ids of `text`, int64 [n]; `continues` where other text stands before it."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids; what is no UTF-8 becomes U+FFFD."""

    def stream(self) -> TextStream:
        """A new stream, for one answer."""


class FileTokenizer:
    """A Hugging Face tokenizer that adds no special tokens.

    Memory: a BPE model of `tokenizers` caches 10,000 words of at most 256 bytes, then stops.
    """

    def __init__(self, inner: HuggingFaceTokenizer) -> None:
        # A document that writes "<|end|>" means these seven characters, not the end of a text.
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        halves = np.split(ids, 2) if len(ids := self._ids("a a")) % 2 == 0 else (ids, ids[:0])
        # "a a" as twice the same token: a space is put before the text, or dropped between words.
        self._prefixes = bool(np.array_equal(*halves))
        exact = [mark for mark in _MARKS if self._may_cut(mark)]
        self.cut_marks = "".join(exact) or " "

    @property
    def vocab_size(self) -> int:
        """Number of token ids, with the added ones."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, continues: bool = False) -> Tokens:
        """Token ids of `text`, int64 [n].

        Args:
            text: any text; the name of a special token in it is text like any other.
            continues: other text stands before it, so a tokenizer that puts a space before a
                text (SentencePiece) must not.
        """
        if not (continues and self._prefixes):
            return self._ids(text)
        if text.startswith(" "):
            return self._ids(text[1:])
        for sign in _BEFORE:
            before, both = self._ids(sign), self._ids(sign + text)
            if np.array_equal(both[: len(before)], before):
                return both[len(before) :]
        return self._ids(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids, special tokens included."""
        return self._inner.decode([int(token) for token in tokens], skip_special_tokens=False)

    def stream(self) -> Detokenizer:
        """A new stream, for one answer."""
        return Detokenizer(self)

    def _ids(self, text: str) -> Tokens:
        return np.array(self._inner.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def _may_cut(self, mark: str) -> bool:
        """Try all pairs of characters of each class around a mark."""
        after = _MARKS[mark]
        if after and self._prefixes:
            return False
        texts = (f"a{left}{mark}{right}a" for left in _SIDES for right in _SIDES)
        return all(self._apart(text[: 2 + after], text[2 + after :]) for text in texts)

    def _apart(self, left: str, right: str) -> bool:
        parts = np.concatenate([self._ids(left), self.encode(right, continues=True)])
        words = self._inner.pre_tokenizer
        if words is not None and not self._prefixes:
            spans = [[w for w, _ in words.pre_tokenize_str(t)] for t in (left, right, left + right)]
            if spans[0] + spans[1] != spans[2]:
                return False
        return bool(np.array_equal(parts, self._ids(left + right)))


def load_tokenizer(path: Path) -> FileTokenizer:
    """Read a `tokenizer.json`.

    Raises:
        BadBundle: it cannot be read.
    """
    try:
        inner = HuggingFaceTokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise BadBundle(
            f"{path} is no tokenizer that Hugging Face tokenizers can read ({error}). "
            "Export the checkpoint again with: longspan export CHECKPOINT BUNDLE --tokenizer FILE"
        ) from error
    return FileTokenizer(inner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a text: UTF-8 bytes before it, and their hex SHA-256."""

    text_bytes: int
    text_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPiece:
    """Tokens int64 [n] of a piece of text, and where the piece starts and ends."""

    tokens: Tokens
    start: Place
    end: Place


class TextDiffersError(Exception):
    """The text before a place is not the text that was there before. Never leaves `runtime`."""


def tokenize(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    *,
    after: Place | None = None,
    continues: bool = False,
) -> Iterator[TokenPiece]:
    """Tokenize a text of any length in pieces of at most 16,384 characters.

    Args:
        texts: the whole text, in pieces of any length.
        tokenizer: turns a piece into ids.
        after: the start of a piece in an earlier call; the pieces before it are skipped.
        continues: whether other text stands before the first piece.

    Raises:
        TextDiffersError: the text before `after` is another than it was then.
    """
    hasher = hashlib.sha256()
    place = Place(text_bytes=0, text_sha256=hasher.hexdigest())
    for text in cut(texts, tokenizer.cut_marks):
        data = text.encode()
        hasher.update(data)
        start = place
        place = Place(text_bytes=start.text_bytes + len(data), text_sha256=hasher.hexdigest())
        if after is not None and start.text_bytes < after.text_bytes:
            continue
        if after is not None and start != after:
            raise TextDiffersError
        after = None
        tokens = tokenizer.encode(text, continues=continues or start.text_bytes > 0)
        yield TokenPiece(tokens=tokens, start=start, end=place)
    if after is not None:
        raise TextDiffersError


def cut(texts: Iterable[str], marks: str = " \n", limit: int = PIECE) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` characters, each at the last good place.

    Args:
        texts: the whole text, in pieces of any length, which do not matter.
        marks: the characters at which it may be cut.
        limit: characters; a stretch of so many without a good place is cut after them.
    """
    waiting = ""
    for text in texts:
        waiting += text
        start = 0
        while len(waiting) - start > limit:
            end = last_place(waiting, start, start + limit, marks)
            yield waiting[start:end]
            start = end
        waiting = waiting[start:]
    if waiting:
        yield waiting


def last_place(text: str, start: int, end: int, marks: str) -> int:
    """The last good place in text[start:end], or `end`; text[end] exists."""
    best = start
    for mark in marks:
        at = text.rfind(mark, start + 1, end)
        while at > best and (text[at - 1].isspace() or text[at + 1].isspace()):
            at = text.rfind(mark, start + 1, at)
        best = max(best, at + _MARKS[mark] if at > start else start)
    return best if best > start else end


class Detokenizer:
    """Turns an answer's tokens into text as they come; a character is never shown half."""

    def __init__(self, tokenizer: FileTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character's bytes are missing."""
        before = self._tokenizer.decode(self._tokens[: self._shown])
        self._tokens.append(token)
        after = self._tokenizer.decode(self._tokens)
        # An incomplete character decodes to U+FFFD; after four tokens it is no longer to come.
        pending = len(self._tokens) - self._shown
        if after.endswith(_REPLACEMENT) and pending < 4:
            return ""
        # The tokens just shown stay as context: some decoders drop a space at the start.
        self._tokens = self._tokens[self._shown :]
        self._shown = len(self._tokens)
        return after[len(before) :]

    def rest(self) -> str:
        """Nothing: half a character at the end is not shown."""
        return ""

    @property
    def pending(self) -> bool:
        """Whether a character waits for the rest of its bytes."""
        return len(self._tokens) > self._shown
