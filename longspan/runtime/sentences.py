"""A token after every sentence of a text, as AnLLM's <AC> models read (arXiv 2402.07616).

A sentence ends at one or more of . ! ?, with the quotes and brackets that close after them, where
white space follows or the text ends. The token stands there, before the white space. The rule knows
no abbreviations: "Mr. Smith" has a token after "Mr.", while "3.14" and "example.com" have none.

A long text is cut before a space or after a line end, so a sentence that ends a piece ends there in
the whole text, too: the tokens depend on the text alone. (Where 16,384 characters have no place to
cut, a full stop may end a piece by chance, and has its token.)

    tokenizer = SentenceTokenizer(load_tokenizer(path), token=32001)
    tokenizer.encode("It rained. It poured.")    # ... 32001 ... 32001
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from longspan.runtime.tokens import TextStream, Tokenizer, Tokens

_END = re.compile(r"[.!?]+[\"'\u2019\u201d\u00bb)\]}]*(?=\s|\Z)")


class SentenceTokenizer:
    """A tokenizer that puts `token` after every sentence, and shows none of them in a text.

    Args:
        inner: makes the tokens of each sentence.
        token: id of the token that stands after it.
    """

    def __init__(self, inner: Tokenizer, token: int) -> None:
        self._inner = inner
        self._token = token
        self.cut_marks = inner.cut_marks

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._inner.vocab_size

    def encode(self, text: str, *, continues: bool = False) -> Tokens:
        """Token ids of `text` and of its sentences' ends, int64 [n].

        Args:
            text: any text; a piece of a longer one as `longspan.runtime.tokens.cut` gives it.
            continues: whether other text stands before it.
        """
        parts: list[Tokens] = []
        for part, ends in _sentences(text):
            parts.append(self._inner.encode(part, continues=continues or bool(parts)))
            if ends:
                parts.append(np.array([self._token]))
        return np.concatenate(parts) if parts else self._inner.encode(text, continues=continues)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids, without those after sentences."""
        return self._inner.decode(token for token in tokens if token != self._token)

    def stream(self) -> TextStream:
        """A new stream, for one answer."""
        return _Stream(self._inner.stream(), self._token)


class _Stream:
    """An answer's text, without the tokens after its sentences."""

    def __init__(self, inner: TextStream, token: int) -> None:
        self._inner = inner
        self._token = token

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        return "" if token == self._token else self._inner.push(token)

    def rest(self) -> str:
        """What is left to show once no more tokens come."""
        return self._inner.rest()

    @property
    def pending(self) -> bool:
        """Whether a character waits for the rest of its bytes."""
        return self._inner.pending


def _sentences(text: str) -> Iterator[tuple[str, bool]]:
    """The text in parts, and whether each ends a sentence; only the last may not."""
    start = 0
    for match in _END.finditer(text):
        yield text[start : match.end()], True
        start = match.end()
    if start < len(text):
        yield text[start:], False
