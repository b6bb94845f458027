"""The data of the recall example: the sentences, the tokenizer, and the filler between them.

A document is filler with one fact somewhere in it and one question at its end. `prepare` trains
the tokenizer and writes the filler as arrays of token ids, so that training never runs a tokenizer;
`RecallData` cuts documents from them on the device. Not known here: the model, the curriculum.

    prepare(novels, folder)
    data = RecallData(folder, "cuda")
    tokens, keys = data.documents(512, gaps=torch.tensor([10, 200], device="cuda"))
"""

from __future__ import annotations

import lzma
import random
import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from longspan import passkey
from longspan.passkey import KEY_DIGITS

FACT = passkey.FACT + "\n"
QUESTION = passkey.PROMPT.removeprefix("\n").format(question=passkey.QUESTION)
ANSWER = " {key}\n"
VOCABULARY = 4096
END = "<|end|>"

NOVEL_TOKENS = 8_000_000
PYTHON_TOKENS = 1_800_000
HELD_OUT_TOKENS = 300_000
HELD_OUT_BOOKS = 4
HELD_OUT_MODULES = (
    "argparse.py",
    "inspect.py",
    "subprocess.py",
    "tarfile.py",
    "typing.py",
    "zipfile.py",
)
LINES_A_PIECE = 300

# Other numbers that a document may mention: what the model must learn not to store.
DECOYS = (
    "The bus number is {n}.",
    "The number of the house is {n}. Remember that.",
    "The door code is {n}. Remember it.",
    "The answer is {n}.",
    "Question: What is the bus number?\nAnswer: {n}",
    "My account, she said, is {n}; remember it.",
    "He had lost the pass key. Remember it.",
    "Flight {n} leaves from gate {m}.",
    "Invoice {n}, page {m}, line {k}",
    "Chapter {m}",
    "Changed in version 3.{k}.{k}: see issue {n}.",
    "In the year {n}, {m} ships and {n} men set sail.",
    ">>> {n} + {m}\n{n}",
    "    timeout = {n}  # {m} seconds",
    "[{k}, {n}, {m}, {n}, {k}]",
    "0x{n} {m} {n} {n} {k} {n}",
    "{n}",
    "{m}.{n}",
)
# Share of pieces, and decoys a line in such a piece.
DECOY_RATES = ((0.5, 0.0), (0.3, 0.03), (0.2, 0.2))


def new_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Train a byte-level BPE in which a digit and a line end are always tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def with_decoys(text: str, rng: random.Random) -> str:
    """`text` with sentences of `DECOYS` between its lines, at a rate drawn from `DECOY_RATES`."""
    shares, rates = zip(*DECOY_RATES, strict=True)
    (rate,) = rng.choices(rates, shares)
    lines: list[str] = []
    for line in text.splitlines():
        if rng.random() < rate:
            n, m, k = (
                rng.randrange(10 ** rng.randint(low, high))
                for low, high in ((1, 6), (1, 4), (1, 2))
            )
            lines.append(rng.choice(DECOYS).format(n=n, m=m, k=k))
        lines.append(line)
    return "\n".join(lines) + "\n"


def pieces_of(text: str) -> list[str]:
    """`text` cut into pieces of `LINES_A_PIECE` lines."""
    lines = text.splitlines()
    return ["\n".join(lines[i : i + LINES_A_PIECE]) for i in range(0, len(lines), LINES_A_PIECE)]


def python_sources() -> tuple[list[str], list[str]]:
    """Source of the standard library to train on, and of the modules held out.

    Neither has pydoc_data, a text to test on.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    away = {"site-packages", "pydoc_data", "test", "tests", "__pycache__"}
    train: list[str] = []
    held_out: list[str] = []
    for path in sorted(root.rglob("*.py")):
        if away.isdisjoint(path.relative_to(root).parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            (held_out if path.name in HELD_OUT_MODULES else train).append(text)
    return train, held_out


def encode(tokenizer: Tokenizer, pieces: list[str], tokens: int) -> list[list[int]]:
    """Ids of the first pieces, until there are `tokens` of them."""
    encoded, total = [], 0
    for start in range(0, len(pieces), 32):
        for encoding in tokenizer.encode_batch(pieces[start : start + 32]):
            encoded.append(encoding.ids)
            total += len(encoding.ids)
        if total >= tokens:
            break
    return encoded


def prepare(novels: Path, folder: Path, seed: int = 0) -> dict[str, int]:
    """Train the tokenizer and write it and three arrays of uint16 ids, train, books and modules.

    Args:
        novels: xz-compressed text, books parted by a line `<|end|>`; the last four are held out.
        folder: written to, made if missing.
        seed: of the order of the pieces and of the decoys.

    Returns:
        Tokens in each array.
    """
    rng = random.Random(seed)
    with lzma.open(novels, "rt", encoding="utf-8") as file:
        books = [book.strip() for book in file.read().split(END) if book.strip()]
    novel_pieces = [piece for book in books[:-HELD_OUT_BOOKS] for piece in pieces_of(book)]
    train_modules, held_out_modules = python_sources()
    python_pieces = [piece for module in train_modules for piece in pieces_of(module)]
    rng.shuffle(novel_pieces)
    rng.shuffle(python_pieces)
    novel_pieces, python_pieces = (
        [with_decoys(p, rng) for p in some] for some in (novel_pieces, python_pieces)
    )

    sentences = [text.format(key="01234") for text in (FACT, QUESTION, ANSWER)] * 50
    tokenizer = new_tokenizer(
        chain(novel_pieces[: len(novel_pieces) // 5], python_pieces[::2], sentences)
    )
    train = encode(tokenizer, novel_pieces, NOVEL_TOKENS) + encode(
        tokenizer, python_pieces, PYTHON_TOKENS
    )
    rng.shuffle(train)
    arrays = {
        "train": list(chain.from_iterable(train)),
        "books": list(
            chain.from_iterable(encode(tokenizer, books[-HELD_OUT_BOOKS:], HELD_OUT_TOKENS))
        ),
        "modules": list(chain.from_iterable(encode(tokenizer, held_out_modules, HELD_OUT_TOKENS))),
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, ids in arrays.items():
        limit = None if name == "train" else HELD_OUT_TOKENS
        np.save(folder / f"{name}.npy", np.array(ids[:limit], dtype=np.uint16))
    return {name: len(ids) for name, ids in arrays.items()}


class RecallData:
    """Cuts documents out of a prepared array, on the device that trains."""

    def __init__(self, folder: Path, device: str, array: str = "train") -> None:
        """Read `tokenizer.json` and `<array>.npy` from `folder`."""
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = np.load(folder / f"{array}.npy").astype(np.int64)
        self.filler = torch.from_numpy(ids).to(device)
        zeros = "0" * KEY_DIGITS
        self.fact, self.fact_digits = self._template("\n" + FACT.format(key=zeros))
        self.question, self.answer_digits = self._template(
            "\n" + QUESTION + ANSWER.format(key=zeros)
        )
        self.digits = torch.tensor(
            [self.tokenizer.token_to_id(str(d)) for d in range(10)], device=device
        )

    def _template(self, text: str) -> tuple[torch.Tensor, slice]:
        """Ids of `text`, and where its digits are."""
        ids = self.tokenizer.encode(text).ids
        zero = self.tokenizer.encode("0").ids[0]
        start = ids.index(zero)
        return torch.tensor(ids, device=self.filler.device), slice(start, start + KEY_DIGITS)

    def longest_gap(self, length: int) -> int:
        """Most tokens between fact and question in a document of `length` tokens."""
        return length - len(self.fact) - len(self.question)

    def documents(self, length: int, gaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Documents of filler with a fact, a gap, and the question and its answer at the very end.

        Args:
            length: tokens of each document.
            gaps: int64 [B], tokens between fact and question, at most `longest_gap(length)`.

        Returns:
            int64 [B, length] tokens, and int64 [B, 5] the tokens of the keys.
        """
        rows, device = len(gaps), self.filler.device
        places = torch.arange(length, device=device)
        start = torch.randint(len(self.filler) - length, (rows, 1), device=device)
        tokens = self.filler[start + places]
        keys = self.digits[torch.randint(10, (rows, KEY_DIGITS), device=device)]
        fact, question = self.fact.repeat(rows, 1), self.question.repeat(rows, 1)
        fact[:, self.fact_digits] = keys
        question[:, self.answer_digits] = keys
        tokens[:, -question.shape[1] :] = question
        first = length - question.shape[1] - gaps - fact.shape[1]
        tokens.scatter_(1, first[:, None] + places[: fact.shape[1]], fact)
        return tokens, keys
