"""The demo says what it hid, repeats what is too short, and refuses what it cannot ask."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from longspan.builtin import builtin_bundle, builtin_tasks
from longspan.bundle import open_bundle
from longspan.errors import BadDocument, BadInput
from longspan.runtime.byte_tokens import ByteTokenizer, bundle_tokenizer
from longspan.runtime.demo import describe_start, distractors, run_demo
from longspan.runtime.documents import open_document
from longspan.runtime.filler import Filler, filler, language_reference, repeated
from longspan.runtime.runtime import Runtime
from longspan.tasks import TASKS, Quiz, draw_quiz

TOKENIZER = ByteTokenizer()
LINE = "It rained on the quay all day.\n"


def joined(text: Filler) -> str:
    return "".join(text.document.pieces())


def test_a_text_is_read_as_it_is_without_a_length() -> None:
    text = filler(open_document(LINE * 20), tokens=None, tokenizer=TOKENIZER)
    assert joined(text) == LINE * 20
    assert text.repeats == 1


def test_a_long_text_is_cut_and_a_short_one_repeated() -> None:
    source = open_document((LINE * 20).rstrip())
    cut = filler(source, tokens=300, tokenizer=TOKENIZER)
    assert joined(cut) == (LINE * 20)[:300]
    assert cut.repeats == pytest.approx(300 / 619)
    again = filler(source, tokens=1000, tokenizer=TOKENIZER)
    assert joined(again) == (LINE * 40)[:1000]
    assert again.repeats == pytest.approx(1000 / 619)


def test_tokens_of_a_real_text_are_counted_about_right() -> None:
    tokenizer = bundle_tokenizer(open_bundle(builtin_bundle()))
    source = open_document("".join(islice(language_reference().pieces(), 1)))
    for tokens in (5000, 40_000):
        text = filler(source, tokens=tokens, tokenizer=tokenizer)
        assert len(tokenizer.encode(joined(text))) == pytest.approx(tokens, rel=0.03)


def test_repeating_holds_no_more_than_pieces() -> None:
    text = filler(open_document(LINE * 1000), tokens=2**24, tokenizer=TOKENIZER)
    others = distractors("passkey", random.Random(0), text.repeats)
    pieces = text.holding(others).pieces()
    tracemalloc.start()
    read = sum(len(piece) for piece in islice(pieces, 20_000))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read > 500_000
    assert peak_bytes < 400_000


def test_each_time_that_a_text_begins_again_it_has_another_fact() -> None:
    text = filler(open_document(LINE * 100), tokens=9300, tokenizer=TOKENIZER)
    assert text.repeats == 3
    facts = distractors("passkey", random.Random(0), 3.0)
    assert [int(fact.depth * 3) for fact in facts] == [1, 2]
    lines = "".join(text.holding(facts).pieces()).splitlines()
    assert next(i for i, line in enumerate(lines) if "number is" in line) > 100
    assert len(lines) == 302
    assert distractors("mary", random.Random(0), 0.5) == ()


def test_a_text_that_is_repeated_starts_on_a_new_line() -> None:
    assert "".join(islice(repeated(lambda: ["one ", "two"]), 6)) == "one two\none two\n"


def test_texts_that_are_refused(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Ten bytes.", encoding="utf-8")
    for tokens in (None, 4096):
        with pytest.raises(BadDocument) as refused:
            filler(open_document(short), tokens=tokens, tokenizer=TOKENIZER)
        assert str(refused.value) == (
            "The document short.txt has 10 tokens; the demo hides facts in a text of 256 or more. "
            "Name a longer one with --document FILE."
        )
    with pytest.raises(BadInput) as few:
        filler(open_document(LINE * 20), tokens=100, tokenizer=TOKENIZER)
    assert str(few.value) == ("--tokens asks for 100 tokens; the demo reads 256 or more. Try 16K.")
    with pytest.raises(BadDocument) as once:
        filler(open_document(iter([LINE] * 20)), tokens=None, tokenizer=TOKENIZER)
    assert str(once.value) == (
        "The document stream can be read only once, and the demo counts its tokens before it reads "
        "it. Save it as a file, and name that with --document FILE."
    )


def test_a_task_that_the_model_was_not_trained_for_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("longspan.runtime.demo.builtin_tasks", lambda: ("passkey", "mary"))
    with pytest.raises(BadInput) as refused:
        run_demo(task="needles")
    assert str(refused.value) == (
        "--task needles was asked for; the built-in model answers passkey, mary. Ask for that, "
        "or name a model that was trained for it with --bundle BUNDLE."
    )


def test_the_built_in_model_knows_pass_keys() -> None:
    assert "passkey" in builtin_tasks()


@pytest.mark.parametrize("task", TASKS)
def test_what_was_hidden_is_said_and_the_answer_put_in_words(task: str, tmp_path: Path) -> None:
    (known,) = (name for name in TASKS if name == task)
    document = tmp_path / "quay.txt"
    document.write_text(LINE * 40, encoding="utf-8")
    started: list[tuple[Runtime, Filler, Quiz]] = []
    shown: list[str] = []

    def on_start(runtime: Runtime, text: Filler, quiz: Quiz) -> None:
        started.append((runtime, text, quiz))
        shown.append(describe_start(runtime, text, quiz))

    result = run_demo(
        task=known,
        document=document,
        tokens=700,
        seed=3,
        budget="1GiB",
        bundle=builtin_bundle(),
        on_start=on_start,
    )
    quiz = draw_quiz(known, random.Random(3))
    assert started[0][2] == quiz
    assert result.facts == quiz.facts
    assert all(fact.text in shown[0] for fact in quiz.facts)
    assert f"too short for 700 tokens: it is read {result.repeats:.1f} times, " in shown[0]
    assert 1 < result.repeats < 2
    assert result.distractors == 1
    assert result.tokens == pytest.approx(700, rel=0.25)
    said = replace(result, answer="x", in_words="In words.", correct=True).text()
    assert said.startswith(f"{quiz.question} In words.  (correct)\n")
    wrong = replace(result, in_words="No.", correct=False).text()
    assert wrong.startswith(f"{quiz.question} No.  (wrong: it is {quiz.answer})\n")
    assert f"tokens, the text {result.repeats:.1f} times, in " in said
