"""The bundle's tokenizer: a ``tokenizer.json`` that fits the model, perhaps changed, or bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, pre_tokenizers

from longspan.bundle import BYTES
from longspan.errors import BadInput
from longspan.models.checkpoint import Checkpoint

BYTE_VALUES = 256
# A digit alone, after a letter, before one, beside others, after a space.
_DIGITS_AMONG = ("{0}", "a{0}", "{0}a", "{0}{0}", "1{0}9", " {0}", "a {0}.")


def choose_tokenizer(
    checkpoint: Checkpoint, given: str | Path | None
) -> Path | Literal["bytes"] | None:
    """The tokenizer's file, checked; "bytes" where tokens are bytes; None for a model without one.

    Args:
        checkpoint: it may have a file, or be of a family whose tokens are bytes.
        given: a file or "bytes", which goes before what the checkpoint has.

    Raises:
        BadInput: the tokenizer does not fit the model, or cannot be read.
    """
    vocab_size = checkpoint.config.vocab_size
    if given == BYTES:
        if vocab_size < BYTE_VALUES:
            raise BadInput(
                f"tokenizer={BYTES!r} was asked for, and the model's vocabulary has {vocab_size} "
                f"tokens. A byte has {BYTE_VALUES} values, and each must have its token. Give the "
                "model's own with tokenizer=FILE (--tokenizer)."
            )
        return BYTES
    source = Path(given) if given is not None else checkpoint.tokenizer
    if source is not None:
        check_tokenizer(source, vocab_size=vocab_size)
        return source
    return BYTES if checkpoint.byte_tokens else None


def tokenizer_content(
    chosen: Path | Literal["bytes"] | None, *, checkpoint: Path, split: bool
) -> bytes | None:
    """What the bundle's ``tokenizer.json`` holds, or None for a bundle without one.

    Args:
        chosen: as `choose_tokenizer` gives it.
        checkpoint: where the model comes from, for messages.
        split: make every digit a token of its own.

    Raises:
        BadInput: digits are to be split and there is no file, or they cannot be.
    """
    if isinstance(chosen, Path):
        return split_digits(chosen) if split else chosen.read_bytes()
    if split:
        raise BadInput(
            f"split_digits was asked for, and {checkpoint} has "
            f"{'no tokenizer' if chosen is None else 'bytes for tokens'}. There must be a "
            "tokenizer.json to change. Give it with tokenizer=FILE (--tokenizer)."
        )
    return None


def check_tokenizer(path: Path, *, vocab_size: int) -> None:
    """Refuse a tokenizer that cannot be read, or whose ids the model has no embedding for.

    Raises:
        BadInput: the file is not there, no tokenizer, or too large for the model.
    """
    tokenizer = _load(path)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocab_size:
        raise BadInput(
            f"{path} was asked for as the tokenizer and has the token id {largest}; the model's "
            f"vocabulary ends at {vocab_size - 1}. Tokenizer and model must belong together. "
            "Give the right one with tokenizer=FILE (--tokenizer)."
        )


def split_digits(path: Path) -> bytes:
    """The tokenizer, changed so that every digit is a token of its own.

    A pre-tokenizer that cuts around each digit is put in front of the one that is there.

    Raises:
        BadInput: a digit still stands in a token with something else, or in none.
    """
    tokenizer = _load(path)
    digits = pre_tokenizers.Digits(individual_digits=True)
    own = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = digits if own is None else pre_tokenizers.Sequence([digits, own])
    for digit in "0123456789":
        for text in (context.format(digit) for context in _DIGITS_AMONG):
            tokens = tokenizer.encode(text, add_special_tokens=False).tokens
            if tokens.count(digit) != text.count(digit):
                raise BadInput(
                    f"split_digits was asked for, and {path} makes {tokens} of {text!r}. Every "
                    "digit must be a token of its own. Leave split_digits (--split-digits) out, or "
                    "give another tokenizer with tokenizer=FILE (--tokenizer)."
                )
    return tokenizer.to_str(pretty=True).encode()


def _load(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        cause: Exception = error
    except Exception as error:
        # The tokenizers library raises bare Exception for everything it cannot read.
        if type(error) is not Exception:
            raise
        cause = error
    raise BadInput(
        f"{path} was asked for as the tokenizer and cannot be read ({cause}). It must be a "
        "tokenizer.json of Hugging Face tokenizers. Give another with tokenizer=FILE (--tokenizer)."
    ) from cause
