"""The text between the facts: novels and Python, as arrays of token ids that training indexes.

Three kinds of tokens (`systems.Tokens`): pieces of words; the same with a token after each
sentence, as the runtime puts it there; bytes. Texts that are held out have arrays of their own.
Half of what is trained on has other numbers mixed in, so that digits are not stored for being
digits.

    python examples/train/text.py --data .data          # reads $LONGSPAN_DATA/text
    Text(Path(".data"), "words").ids("train")           # uint16 [n]
"""

from __future__ import annotations

import argparse
import lzma
import os
import random
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from systems import SENTENCES, WORDS, Tokens
from tasks import sentences_of_tasks
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from longspan.runtime.byte_tokens import ByteTokenizer
from longspan.runtime.sentences import SentenceTokenizer
from longspan.runtime.tokens import FileTokenizer, load_tokenizer
from longspan.runtime.tokens import Tokenizer as TextTokenizer

Array = Literal["train", "books", "modules"]
END = "<|end|>"
NOVELS = "text/novels-train.txt.xz"

NOVEL_TOKENS = 8_000_000
PYTHON_TOKENS = 1_800_000
SENTENCES_TOKENS = 2_000_000
BYTE_TOKENS = 9_000_000
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


class Text:
    """The arrays of one kind of tokens in a prepared folder, and their tokenizer."""

    def __init__(self, folder: Path, tokens: Tokens) -> None:
        """Look at `folder`, as `prepare` wrote it."""
        self.folder, self.kind = folder, tokens
        self.file = None if tokens == "bytes" else folder / f"tokenizer-{tokens}.json"

    def tokenizer(self) -> TextTokenizer:
        """Text to ids and back, as the runtime will do it."""
        if self.file is None:
            return ByteTokenizer()
        inner = load_tokenizer(self.file)
        return SentenceTokenizer(inner, SENTENCES - 1) if self.kind == "sentences" else inner

    def ids(self, array: Array) -> NDArray[np.uint16]:
        """One array, uint16 [n]."""
        ids: NDArray[np.uint16] = np.load(self.folder / f"{array}-{self.kind}.npy")
        return ids.astype(np.uint16)

    def save(self, array: Array, ids: Iterable[int], limit: int) -> int:
        """Write the first `limit` ids; return how many there are."""
        dtype = np.uint8 if self.kind == "bytes" else np.uint16
        found = np.fromiter(ids, dtype)[:limit]
        np.save(self.folder / f"{array}-{self.kind}.npy", found)
        return len(found)


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
        vocab_size=WORDS,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizers(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer, and the same with one token more, for the ends of sentences."""
    # What exports needs ONNX; what trains from a prepared folder does not.
    from longspan.export.anchors import SENTENCE_TOKEN

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer-words.json"))
    # Fewer words can be found in a short text: the token's id is what the model was built for.
    fillers = [f"<unused{i}>" for i in range(WORDS - tokenizer.get_vocab_size())]
    tokenizer.add_special_tokens([*fillers, SENTENCE_TOKEN])
    tokenizer.save(str(folder / "tokenizer-sentences.json"))


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


def prepare(novels: Path, folder: Path, seed: int = 0) -> dict[str, int]:
    """Train the tokenizer; write it, and each array in each kind of tokens.

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
    train_modules, held_out_modules = python_sources()
    pieces = [
        [with_decoys(piece, rng) for text in texts for piece in pieces_of(text)]
        for texts in (books[:-HELD_OUT_BOOKS], train_modules)
    ]
    for some in pieces:
        rng.shuffle(some)
    of_novels, of_python = pieces
    known = sentences_of_tasks() * 50
    tokenizer = new_tokenizer(chain(of_novels[: len(of_novels) // 5], of_python[::2], known))
    save_tokenizers(tokenizer, folder)

    inner = FileTokenizer(Tokenizer.from_file(str(folder / "tokenizer-words.json")))
    train = [*_until(of_novels, NOVEL_TOKENS, inner), *_until(of_python, PYTHON_TOKENS, inner)]
    rng.shuffle(train)
    texts: dict[Array, list[str]] = {
        "train": train,
        "books": books[-HELD_OUT_BOOKS:],
        "modules": held_out_modules,
    }
    limits: dict[Tokens, int] = {
        "words": NOVEL_TOKENS + PYTHON_TOKENS,
        "sentences": SENTENCES_TOKENS,
        "bytes": BYTE_TOKENS,
    }
    counts = {}
    for kind, limit in limits.items():
        text = Text(folder, kind)
        for array, parts in texts.items():
            most = limit if array == "train" else HELD_OUT_TOKENS
            ids = _ids(text.tokenizer(), parts, most)
            counts[f"{array}-{kind}"] = text.save(array, ids, most)
    return counts


def _until(pieces: list[str], tokens: int, tokenizer: TextTokenizer) -> Iterator[str]:
    """The first pieces, until there are `tokens` of them."""
    found = 0
    for piece in pieces:
        if found >= tokens:
            return
        found += len(tokenizer.encode(piece))
        yield piece


def _ids(tokenizer: TextTokenizer, texts: list[str], limit: int) -> Iterator[int]:
    """Ids of the texts, at least `limit` of them if there are as many."""
    found = 0
    for text in texts:
        for piece in pieces_of(text):
            if found >= limit:
                return
            ids = tokenizer.encode(piece + "\n").tolist()
            found += len(ids)
            yield from ids


def main() -> None:
    """Read the command line, prepare, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    beside = os.environ.get("LONGSPAN_DATA")
    parser.add_argument(
        "--novels",
        type=Path,
        default=Path(beside) / NOVELS if beside else None,
        required=beside is None,
    )
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    for name, count in prepare(options.novels, options.data).items():
        print(f"{name:16} {count:12,} tokens")


if __name__ == "__main__":
    main()
