"""Tokens that are bytes, id = value (MambaByte, arXiv 2401.13660), and a bundle's own tokenizer.

A position in a text that is read so is a byte offset.

    tokenizer = bundle_tokenizer(bundle)
    tokenizer.encode("é")       # [195, 169]
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

import numpy as np

from longspan.bundle import BYTES, Bundle, Manifest
from longspan.errors import BadInput
from longspan.runtime.sentences import SentenceTokenizer
from longspan.runtime.tokens import Tokenizer, Tokens, load_tokenizer

VALUES = 256


class ByteTokenizer:
    """A token is a byte of the UTF-8 text; a model's ids from 256 on stand for no text."""

    cut_marks = ""

    @property
    def vocab_size(self) -> int:
        """256."""
        return VALUES

    def encode(self, text: str, *, continues: bool = False) -> Tokens:
        """The bytes of `text`, int64 [n], whether or not other text stands before it."""
        del continues
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of bytes; what is no UTF-8 becomes U+FFFD."""
        return _bytes(tokens).decode(errors="replace")

    def stream(self) -> ByteStream:
        """A new stream, for one answer."""
        return ByteStream()


class ByteStream:
    """Turns bytes into text as they come; a character is shown when its last byte is there."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, U+FFFD for bytes that turn out to be no character."""
        return self._decoder.decode(_bytes([token]))

    def rest(self) -> str:
        """U+FFFD where the last character lacks bytes."""
        return self._decoder.decode(b"", final=True)

    @property
    def pending(self) -> bool:
        """Whether a character waits for the rest of its bytes."""
        waiting, _ = self._decoder.getstate()
        return bool(waiting)


def bundle_tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer of a bundle.

    Raises:
        BadBundle: its file cannot be read.
        BadInput: the bundle has none.
    """
    if bundle.manifest.tokenizer == BYTES:
        return ByteTokenizer()
    if bundle.tokenizer_path is None:
        raise BadInput(
            f"The bundle {bundle.path} has no tokenizer, so it can read tokens and no text. Give "
            "it one with: longspan export CHECKPOINT BUNDLE --tokenizer FILE"
        )
    tokenizer, token = load_tokenizer(bundle.tokenizer_path), bundle.manifest.sentence_token
    return tokenizer if token is None else SentenceTokenizer(tokenizer, token)


def id_dtype(manifest: Manifest) -> str:
    """How token ids stand for a text: as its bytes, where the model has no others; else int64."""
    all_bytes = manifest.tokenizer == BYTES and manifest.config.vocab_size == VALUES
    return "u1" if all_bytes else "<i8"


def _bytes(tokens: Iterable[int]) -> bytes:
    return bytes(int(token) for token in tokens if token < VALUES)
