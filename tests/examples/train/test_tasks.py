"""Documents say what their answers rest on, once, and end in the question and its answer."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from pathlib import Path

import pytest
import torch
from small import write_text
from stories import EVENT, where_it_ended
from systems import Tokens
from tasks import (
    DRAW,
    FACTS,
    QUESTIONS,
    Documents,
    Task,
    draw_mary,
    log_uniform,
    sentences_of_tasks,
)
from text import Text, with_decoys

from longspan.tasks import PLACES, PROMPT, draw_quiz

TOKENS: tuple[Tokens, ...] = ("words", "sentences", "bytes")
CPU = torch.device("cpu")
# Of every sentence: a change makes the tokenizers and the checkpoints of before useless.
TRAINED_ON = "603d612b70c07c04851ef4f18cba75a832a5b186aedec2915e52df76d9f2c21f"


@pytest.fixture(scope="module", params=TOKENS)
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Text:
    return write_text(tmp_path_factory.mktemp("text"), request.param)


def drawn(text: Text, task: Task, rows: int = 40, facts: int = 4) -> list[tuple[str, str]]:
    """Documents as text, and their answers, which are their last tokens."""
    documents = Documents(text, "train", "cpu")
    length = 1200 if text.kind == "bytes" else 320
    batch = documents.draw((task,), rows=rows, length=length, gap=(1, length), facts=facts)
    assert batch.tokens.shape == (rows, length)
    tokenizer = text.tokenizer()
    found = []
    for row, mask in zip(batch.tokens, batch.answers, strict=True):
        answer = row[-len(mask) :][mask]
        assert torch.equal(row[length - len(answer) :], answer), "an answer is the last tokens"
        found.append((tokenizer.decode(row.tolist()), tokenizer.decode(answer.tolist())))
    return found


def test_the_pass_key_is_said_once(text: Text) -> None:
    for document, answer in drawn(text, "passkey"):
        (key,) = re.findall(r"\nThe pass key is (\d{5})\. Remember it\.\n", document)
        assert answer == f" {key}\n"
        assert document.endswith(f"\nQuestion: What is the pass key?\nAnswer: {key}\n")


def test_one_of_the_needles_is_asked_for(text: Text) -> None:
    for document, answer in drawn(text, "needles"):
        needles = dict(re.findall(r"\nThe (\w+) number is (\d{3})\.\n", document))
        assert len(needles) == 4
        (asked,) = re.findall(r"\nQuestion: What is the (\w+) number\?\nAnswer:", document)
        assert answer == f" {needles[asked]}\n"


@pytest.mark.parametrize("facts", [1, 2, 7])
def test_mary_is_where_the_story_left_her(text: Text, facts: int) -> None:
    things = set()
    for document, answer in drawn(text, "mary", rows=200, facts=facts):
        (asked,) = re.findall(r"\nQuestion: Where is (?:the )?(\w+)\?\nAnswer:", document)
        things.add(asked)
        events = re.findall(rf"\n{EVENT}\n", document)
        assert answer == f" {where_it_ended(events, asked)}\n"
    assert {"Mary", "John"} < things
    assert ("football" in things) == (facts > 1)


def test_answers_to_mary_are_spread_over_places() -> None:
    story = draw_mary(3000, 6, CPU)
    answers = [QUESTIONS[i].answer for i in story.question.tolist()]
    for place in PLACES:
        assert 0.1 < answers.count(f" {place}\n") / len(answers) < 0.25


def test_the_words_are_those_that_checkpoints_were_trained_on() -> None:
    said = sentences_of_tasks()
    assert hashlib.sha256("\0".join(said).encode()).hexdigest() == TRAINED_ON
    for seed, task in itertools.product(range(100), DRAW):
        quiz = draw_quiz(task, random.Random(seed))
        for fact in quiz.facts:
            assert "\n" + re.sub(r"\d", "0", fact.text) + "\n" in said
        asked = f"{PROMPT.format(question=quiz.question)} {quiz.answer}\n"
        assert re.sub(r"\d", "0", asked) in said


def test_facts_are_where_their_numbers_say() -> None:
    assert [FACTS[i].digits for i in (0, 1, 16, 17)] == [5, 3, 3, 0]
    assert "went" in FACTS[17].text
    assert "took" in FACTS[41].text
    assert "dropped" in FACTS[53].text


@pytest.mark.parametrize("gap", [1, 30])
def test_the_gap_is_between_fact_and_question(text: Text, gap: int) -> None:
    documents = Documents(text, "train", "cpu")
    length = documents.longest_gap(0, 1) * -1 + gap
    batch = documents.draw(("passkey",), rows=5, length=length, gap=(gap, gap), facts=1)
    spare = documents.facts.width - int(documents.facts.lengths[0])
    spare += documents.questions.width - int(documents.questions.lengths[0])
    first = batch.tokens[:, : int(documents.facts.lengths[0])]
    assert text.tokenizer().decode(first[0].tolist()).startswith("\nThe pass key is ")
    rest = length - first.shape[1] - int(documents.questions.lengths[0])
    assert rest == gap + spare


def test_log_uniform_stays_inside() -> None:
    drawn = log_uniform(1000, 3, 40, CPU)
    assert int(drawn.min()) == 3
    assert int(drawn.max()) == 40
    assert bool((log_uniform(10, 5, 5, CPU) == 5).all())


def test_digits_and_line_ends_are_tokens_of_their_own(tmp_path: Path) -> None:
    tokenizer = write_text(tmp_path, "words").tokenizer()
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("key is 4821.\n\n")]
    assert [piece for piece in pieces if piece in "4821\n"] == ["4", "8", "2", "1", "\n", "\n"]


def test_decoys_keep_the_lines_of_the_text() -> None:
    text = "\n".join(f"line {i} of the text" for i in range(50))
    for seed in range(5):
        mixed = with_decoys(text, random.Random(seed)).splitlines()
        assert [line for line in mixed if line.endswith("of the text")] == text.splitlines()
