"""Tokenizers that tests train: byte-level as ours, and two of SentencePiece's kind."""

from __future__ import annotations

import argparse
import inspect
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from longspan.runtime import tokens

SOURCE = inspect.getsource(argparse)
UNICODE = (
    "Zoë's café — “déjà vu”, naïve; 東京 は大きい。 Привет,  мир!\u00a0x\u2003y\tz \n\n  \r\n"
    "e\u0301 a\u200bb 12 345.67e-8 ''' don't I'LL we've "
    "👩\u200d👩\u200d👧 مرحبا שלום\x1c q\n/x !\n/y\n"
)


@cache
def byte_level() -> Tokenizer:
    """A digit and a line end are tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SOURCE, UNICODE * 20], trainer)
    return tokenizer


@cache
def slashes() -> Tokenizer:
    """A word may hold a line end and go on after it, as in the newest byte-level patterns."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SOURCE, "!\n/ " * 500, UNICODE * 20], trainer)
    return tokenizer


@cache
def metaspace() -> Tokenizer:
    """SentencePiece as `tokenizers` writes it today."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>"], show_progress=False, limit_alphabet=300
    )
    tokenizer.train_from_iterator([SOURCE, UNICODE * 20], trainer)
    return tokenizer


@cache
def prepended() -> Tokenizer:
    """SentencePiece as Llama 2 has it: no pre-tokenizer, a space put before by the normalizer."""
    trained = metaspace()
    tokenizer = Tokenizer.from_str(trained.to_str())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = None
    return tokenizer


def wrapped(inner: Tokenizer) -> tokens.FileTokenizer:
    """A fresh wrapper, as a bundle's file gives it."""
    return tokens.FileTokenizer(Tokenizer.from_str(inner.to_str()))


def save(inner: Tokenizer, path: Path) -> Path:
    """Write a tokenizer's file."""
    inner.save(str(path))
    return path
