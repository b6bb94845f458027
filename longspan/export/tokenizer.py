"""The bundle's ``tokenizer.json``: read, held against the model's vocabulary, perhaps changed."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers

from longspan.errors import BadInput

# A digit alone, after a letter, before one, beside others, after a space.
_DIGITS_AMONG = ("{0}", "a{0}", "{0}a", "{0}{0}", "1{0}9", " {0}", "a {0}.")


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
