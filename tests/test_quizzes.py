"""Facts stand once, on lines of their own, and a question has the answer that they give."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from stories import EVENT, where_it_ended

from longspan.tasks import FACTS, LINE_CHARACTERS, PLACES, TASKS, Fact, Quiz, draw_quiz, hide
from longspan.tasks import draw_distractor as distractor

TEXT = "".join(f"line {i} of the text\n" for i in range(100))


def hidden(text: str, facts: tuple[Fact, ...], piece: int = 10**6) -> str:
    pieces = (text[i : i + piece] for i in range(0, len(text), piece))
    return "".join(hide(pieces, facts, total_bytes=len(text.encode())))


def quizzes(task: str, count: int = 200) -> Iterator[Quiz]:
    (known,) = (name for name in TASKS if name == task)
    yield from (draw_quiz(known, random.Random(seed)) for seed in range(count))


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("piece", [1, 7, 10**6])
def test_a_fact_is_hidden_once_on_a_line_of_its_own(depth: float, piece: int) -> None:
    fact = draw_quiz("passkey", random.Random(5), depth).facts[0]
    found = hidden(TEXT, (fact,), piece)
    lines = found.splitlines()
    assert lines.count(fact.text) == 1
    assert found.replace(fact.text + "\n", "") == TEXT
    assert abs(lines.index(fact.text) / len(lines) - depth) < 0.03


@pytest.mark.parametrize("task", TASKS)
def test_facts_stand_in_their_order(task: str) -> None:
    for quiz in quizzes(task, 20):
        lines = hidden(TEXT, quiz.facts).splitlines()
        assert [line for line in lines if "of the text" not in line] == [
            fact.text for fact in quiz.facts
        ]


@pytest.mark.parametrize("piece", [1, 999, 10**6])
def test_a_text_without_line_ends_is_parted_between_words(piece: int) -> None:
    text = "wörter " * 2000
    found = hidden(text, (Fact(text="It rained.", depth=0.5),), piece)
    before, fact, after = found.split("\n")
    assert (before + after, fact) == (text, "It rained.")
    assert before.endswith(" ")
    assert abs(len(before) - len(text) / 2) <= LINE_CHARACTERS


def test_the_pass_key_is_said_and_asked_for() -> None:
    for quiz in quizzes("passkey"):
        assert [fact.text for fact in quiz.facts] == [
            f"The pass key is {quiz.answer}. Remember it."
        ]
        assert re.fullmatch(r"\d{5}", quiz.answer)
        assert quiz.question == "What is the pass key?"
        assert quiz.in_words(quiz.answer) == f"The pass key is {quiz.answer}."


def test_one_of_the_needles_is_asked_for() -> None:
    for quiz in quizzes("needles"):
        said = [re.fullmatch(r"The (\w+) number is (\d{3})\.", f.text) for f in quiz.facts]
        numbers = {found[1]: found[2] for found in said if found}
        assert len(numbers) == FACTS
        (asked,) = re.findall(r"What is the (\w+) number\?", quiz.question)
        assert quiz.answer == numbers[asked]
        assert quiz.in_words(quiz.answer) == f"The {asked} number is {quiz.answer}."
        assert quiz.depth == next(f.depth for f in quiz.facts if f" {asked} " in f.text)


def test_mary_is_where_the_story_left_her() -> None:
    asked_for, answers = set(), []
    for quiz in quizzes("mary", 600):
        (asked,) = re.findall(r"Where is (?:the )?(\w+)\?", quiz.question)
        asked_for.add(asked)
        answers.append(quiz.answer)
        events = [event for fact in quiz.facts for (event,) in [re.findall(EVENT, fact.text)]]
        assert quiz.answer == where_it_ended(events, asked)
        assert quiz.in_words(quiz.answer).endswith(f"{asked} is in the {quiz.answer}.")
        assert len(quiz.facts) == FACTS
        assert [f.depth for f in quiz.facts] == sorted(f.depth for f in quiz.facts)
        assert quiz.depth == quiz.facts[0].depth <= 0.5
    assert asked_for == {"Mary", "John", "Daniel", "Sandra", "football", "apple", "milk"}
    for place in PLACES:
        assert 0.1 < answers.count(place) / len(answers) < 0.25


@pytest.mark.parametrize("task", TASKS)
def test_babble_is_no_sentence_and_a_depth_is_kept(task: str) -> None:
    (quiz, *_) = quizzes(task, 1)
    assert quiz.in_words("a bus and 12") == '"a bus and 12"'
    assert draw_quiz(quiz.task, random.Random(1), 0.25).depth == 0.25


@pytest.mark.parametrize("task", TASKS)
def test_a_distractor_is_no_fact_of_its_task(task: str) -> None:
    (quiz, *_) = quizzes(task, 1)
    other = distractor(quiz.task, random.Random(2), 0.5)
    own = {"passkey": "pass key", "needles": "number", "mary": "went"}[task]
    assert own not in other.text
