"""Documents of the papers' tasks, with unseen text as the filler: as training made them, by place.

The sentences and the draws are those of `examples/train/tasks.py`; here every fact stands where it
is asked to stand. Not known here: models.

    material = Material.of(Path(".data"), "words", "books")
    story = stories("needles", rows=1, facts=8, seed=0)[0]
    tokens = material.document(story, length=4096, places=[0.1] * 8)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from longspan.runtime.tokens import Tokenizer

sys.path.append(str(Path(__file__).parents[1] / "examples" / "train"))

from systems import SYSTEMS
from systems import Tokens as Kind
from tasks import DRAW, FACTS, QUESTIONS, Sentence, Task
from text import Array, Text

__all__ = [
    "SYSTEMS", "Asked", "Material", "Story", "Task", "Tokens", "spread", "stories", "windows",
]  # fmt: skip
Tokens = NDArray[np.int64]
ANSWER_TOKENS = 12  # room for the longest answer and the end of its line


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question, as text that follows the document, and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Facts in the order of the text, and what is asked about them."""

    facts: tuple[str, ...]
    asked: tuple[Asked, ...]


def filled(text: str, sentence: Sentence, digits: Sequence[int]) -> str:
    """`text` of a sentence with a value's digits in place of its zeros."""
    value = "".join(map(str, digits[: sentence.digits]))
    return text.replace("0" * sentence.digits, value) if sentence.digits else text


def stories(task: Task, *, rows: int, facts: int, seed: int) -> list[Story]:
    """Fresh facts and values; of needles every fact is asked for, of others what was drawn.

    Args:
        task: what is asked.
        rows: stories.
        facts: of each; a pass key has one.
        seed: of the draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = DRAW[task](rows, facts, torch.device("cpu"))
    found = []
    for chosen, values, question, answer in zip(
        drawn.facts.tolist(), drawn.values.tolist(), drawn.question.tolist(),
        drawn.answer.tolist(), strict=True,
    ):  # fmt: skip
        told = tuple(
            filled(FACTS[i].text, FACTS[i], value) for i, value in zip(chosen, values, strict=True)
        )
        # A needle and its question have the same number.
        asked = zip(chosen, values, strict=True) if task == "needles" else [(question, answer)]
        found.append(
            Story(
                facts=told,
                asked=tuple(
                    Asked(
                        question=QUESTIONS[i].text,
                        answer=filled(QUESTIONS[i].answer, QUESTIONS[i], value).strip(),
                    )
                    for i, value in asked
                ),
            )
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Text that no model was trained on, and what makes tokens of facts and questions.

    Attributes:
        tokenizer: the one that training used.
        ids: the filler, int64 [n]; a longer document repeats it.
    """

    tokenizer: Tokenizer
    ids: Tokens

    @classmethod
    def of(cls, data: Path, kind: Kind, array: Array = "books") -> Material:
        """One array of a folder that `examples/train/text.py` wrote."""
        text = Text(data, kind)
        return cls(tokenizer=text.tokenizer(), ids=text.ids(array).astype(np.int64))

    def encode(self, text: str) -> Tokens:
        """Token ids of a text that follows another."""
        return self.tokenizer.encode(text, continues=True)

    def filler(self, start: int, count: int) -> Tokens:
        """`count` tokens from `start` on."""
        return np.take(self.ids, np.arange(start, start + count), mode="wrap")

    def start(self, number: int, of: int, count: int) -> int:
        """Where the filler of document `number` begins: they are spread as far as the text goes."""
        return number * max(1, len(self.ids) - count) // of

    def room(self, story: Story, length: int) -> int:
        """Tokens of filler in a document of `length` tokens, its question and answer among them.

        Raises:
            ValueError: the facts and the question alone are longer.
        """
        asked = max(len(self.encode(each.question)) for each in story.asked)
        taken = sum(len(self.encode(fact)) for fact in story.facts) + asked + ANSWER_TOKENS
        if length <= taken:
            raise ValueError(
                f"a document of {length:,} tokens has no room for filler: facts, question and "
                f"answer take {taken:,}. Ask for longer documents."
            )
        return length - taken

    def document(
        self, story: Story, length: int, places: Sequence[float], start: int = 0
    ) -> Tokens:
        """Filler with the facts at `places`, rising shares of it, int64 [n], n < length."""
        room = self.room(story, length)
        filler = self.filler(start, room)
        cuts = [0, *(int(room * place) for place in places), room]
        parts: list[Tokens] = []
        for i, (first, last) in enumerate(pairwise(cuts)):
            parts.append(filler[first:last])
            if i < len(story.facts):
                parts.append(self.encode(story.facts[i]))
        return np.concatenate(parts)


def spread(count: int, rng: np.random.Generator) -> list[float]:
    """Places of so many facts anywhere in a document, in order."""
    return sorted(rng.random(count).tolist())


def windows(ids: Tokens, length: int, tokens: int) -> Iterator[Tokens]:
    """Texts of `length` tokens, one after another, of the first `tokens` of `ids`."""
    most = min(tokens, len(ids))
    for start in range(0, most - length + 1, length):
        yield ids[start : start + length]
