"""The bundles of `examples/checkpoints` answer what their table says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import longspan
from longspan.runtime.filler import filler, language_reference
from longspan.tasks import Task, draw_quiz

FOLDER = Path(__file__).parents[2] / "examples" / "checkpoints"
ANSWERS: dict[str, Task] = {"mixcon": "needles"}
MOST_BYTES = 20_000_000


def test_every_bundle_is_small_and_in_the_table() -> None:
    assert {path.parent.name for path in FOLDER.rglob("longspan.json")} == set(ANSWERS)
    said = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in ANSWERS:
        assert f"| `{name}/` |" in said
        assert sum(path.stat().st_size for path in (FOLDER / name).iterdir()) < MOST_BYTES


@pytest.mark.parametrize(("name", "task"), ANSWERS.items())
def test_a_bundle_answers(name: str, task: Task) -> None:
    with longspan.load(FOLDER / name, device="cpu", budget="2GiB") as runtime:
        text = filler(language_reference(), tokens=400, tokenizer=runtime.tokenizer)
        for seed in range(3):
            quiz = draw_quiz(task, random.Random(seed))
            memory = runtime.read(text.holding(quiz.facts))
            assert runtime.ask(memory, quiz.question).read().strip() == quiz.answer
