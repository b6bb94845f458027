"""A check that a ``tokenizer.json`` can be read and fits the model's vocabulary."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from longspan.errors import BadInput


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
