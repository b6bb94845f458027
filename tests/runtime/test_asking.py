"""Answers: streaming, stop strings, ends, cancelling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import VOCABULARY, Recorder, fake_bundle, fake_runtime, same_state
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers_ import byte_level

from longspan.bundle import Bundle, Prompt
from longspan.errors import BadInput, BadMemory
from longspan.runtime.asking import StopText, format_question
from longspan.runtime.backends import State
from longspan.runtime.backends.fake import FakeBackend


class Counting(FakeBackend):
    """Says a text token by token, by position alone."""

    def __init__(self, text: str, start: int) -> None:
        super().__init__(VOCABULARY)
        self.says = [*byte_level().encode(text).ids, 0]
        self.start = start

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """The token whose turn it is."""
        _, state = super().forward(tokens, state, keep=[], donate=donate)
        at = int(state["position"][0]) - self.start
        logits = np.zeros((len(keep), VOCABULARY), np.float32)
        logits[:, self.says[at % len(self.says)]] = 1
        return logits, state


DOCUMENT, QUESTION = "It was a whale.", " who?"
START = len(byte_level().encode(DOCUMENT).ids) + len(byte_level().encode(QUESTION).ids)


def answer_to(folder: Path, says: str, *, eos: int | None = 0, **options: Any) -> Any:
    bundle = fake_bundle(folder, eos=eos)
    with fake_runtime(bundle, backend=Counting(says, START)) as runtime:
        answer = runtime.ask(runtime.read(DOCUMENT), QUESTION, **options)
        answer.collected = list(answer)
        return answer


def test_an_answer_is_streamed(tmp_path: Path) -> None:
    answer = answer_to(tmp_path, " Ahab, of the Pequod — naïve 東京 😀!")
    assert answer.text == "Ahab, of the Pequod — naïve 東京 😀!" == "".join(answer.collected)
    assert len(answer.collected) > 10
    assert not any("\ufffd" in piece or piece == "" for piece in answer.collected)
    assert answer.finish == "eos"
    assert answer.tokens == len(byte_level().encode(" Ahab, of the Pequod — naïve 東京 😀!").ids)
    assert 0 < answer.first_token_seconds <= answer.seconds


@pytest.mark.parametrize(
    ("says", "text"),
    [(" one", "one"), ("  one", " one"), ("one two", "one two"), ("\n one", "\n one"), (" ", "")],
)
def test_one_leading_space_is_left_out(tmp_path: Path, says: str, text: str) -> None:
    assert answer_to(tmp_path, says).text == text


@pytest.mark.parametrize(
    ("stop", "text", "finish"),
    [
        (["\n"], "Ahab and", "stop"),
        (["and\nthe"], "Ahab ", "stop"),
        (["xyz", "hab an"], "A", "stop"),
        (["and\nthex", "nd\nthe crew."], "Ahab a", "stop"),
        (["crew.!"], "Ahab and\nthe crew.", "eos"),
        ([], "Ahab and\nthe crew.", "eos"),
    ],
)
def test_stop_strings(tmp_path: Path, stop: list[str], text: str, finish: str) -> None:
    answer = answer_to(tmp_path, " Ahab and\nthe crew.", stop=stop)
    assert (answer.text, answer.finish) == (text, finish)


def test_the_bundles_own_stop_and_template(tmp_path: Path) -> None:
    prompt = Prompt(template="\nQ: {question}\nA:", stop=("!",))
    bundle, backend = fake_bundle(tmp_path, prompt=prompt), Recorder()
    with fake_runtime(bundle, backend=backend, chunk_tokens=4) as runtime:
        memory = runtime.read(DOCUMENT)
        backend.lengths.clear()
        backend.kept.clear()
        runtime.ask(memory, "who?", max_tokens=1).read()
        asked = len(byte_level().encode("\nQ: who?\nA:").ids)
        assert sum(backend.lengths) == asked
        assert max(backend.lengths) == 4
        assert backend.kept == [[]] * (len(backend.kept) - 1) + [[-1]]
        backend.lengths.clear()
        runtime.ask(memory, "who?", template="{question}", max_tokens=1).read()
        assert sum(backend.lengths) == len(byte_level().encode("who?").ids)


@pytest.mark.parametrize("max_tokens", [1, 5])
def test_the_longest_answer(tmp_path: Path, max_tokens: int) -> None:
    answer = answer_to(tmp_path, "a b c d e f g h", eos=None, max_tokens=max_tokens)
    assert answer.finish == "length"
    assert answer.tokens == max_tokens


def test_a_character_that_is_not_complete_is_not_shown(tmp_path: Path) -> None:
    tokens = len(byte_level().encode("ab 😀").ids)
    assert answer_to(tmp_path, "ab 😀", max_tokens=tokens - 1).text.strip() == "ab"


def test_nothing_is_computed_before_it_is_wanted(tmp_path: Path) -> None:
    backend = Recorder()
    with fake_runtime(fake_bundle(tmp_path), backend=backend) as runtime:
        memory = runtime.read(DOCUMENT)
        backend.lengths.clear()
        answer = runtime.ask(memory, "who?")
        assert answer.finish is None
        assert not backend.lengths
        pieces = iter(answer)
        next(pieces)
        first = len(backend.lengths)
        next(pieces)
        assert len(backend.lengths) > first


def test_leaving_the_loop_cancels(tmp_path: Path) -> None:
    with fake_runtime(fake_bundle(tmp_path, eos=None), backend=Counting("a b c", START)) as runtime:
        answer = runtime.ask(runtime.read(DOCUMENT), QUESTION)
        for piece in answer:
            assert piece == "a"
            break
        assert (answer.finish, answer.text, list(answer)) == ("cancelled", "a", ["a"])
        assert answer.seconds > 0
        assert runtime.measured.decode_tokens == answer.tokens - 1


def test_iterating_again_yields_the_same(tmp_path: Path) -> None:
    answer = answer_to(tmp_path, "one two three")
    assert list(answer) == answer.collected
    assert answer.read() == "one two three"


def test_asking_changes_no_memory_and_answers_repeat(tmp_path: Path) -> None:
    with fake_runtime(fake_bundle(tmp_path)) as runtime:
        memory = runtime.read("The key is four. The lock is five.")
        kept = {name: array.copy() for name, array in memory.state.items()}
        first = runtime.ask(memory, "The key is", max_tokens=9).read()
        runtime.ask(memory, "The lock is", max_tokens=9).read()
        assert runtime.ask(memory, "The key is", max_tokens=9).read() == first
        same_state(memory.state, kept)


def test_two_memories_do_not_bleed_into_each_other(tmp_path: Path) -> None:
    texts = ("The key is four. Keep it.", "The key is seven! Keep it.")
    with fake_runtime(fake_bundle(tmp_path)) as runtime:
        memories = [runtime.read(text) for text in texts]
        alone = [runtime.ask(m, "The key is", max_tokens=9).read() for m in memories]
        assert alone[0] != alone[1]
        answers = [iter(runtime.ask(m, "The key is", max_tokens=9)) for m in memories]
        together = ["", ""]
        for _ in range(20):
            for i, pieces in enumerate(answers):
                together[i] += next(pieces, "")
        assert together == alone


def test_an_empty_prompt_uses_the_last_logits(tmp_path: Path) -> None:
    backend = Recorder()
    with fake_runtime(fake_bundle(tmp_path), backend=backend) as runtime:
        memory = runtime.read("a b a b a")
        backend.lengths.clear()
        inner = runtime.tokenizer
        encode = inner.encode
        inner.encode = lambda text, *, continues=False: encode("")  # type: ignore[method-assign]
        assert runtime.ask(memory, "-", max_tokens=1).read() == "b"
        assert not backend.lengths


def test_drawing_with_a_seed_repeats(tmp_path: Path) -> None:
    with fake_runtime(fake_bundle(tmp_path, eos=None)) as runtime:
        memory = runtime.read(DOCUMENT)

        def draw(seed: int) -> str:
            answer = runtime.ask(memory, "x", temperature=3.0, seed=seed, max_tokens=30)
            return answer.read()

        assert draw(1) == draw(1) != draw(2)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path)


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        (" ", {}, "The question is empty. Ask something, as in: longspan ask ... 'Who?'"),
        (
            "x",
            {"template": "Q:"},
            "The template 'Q:' has no place for the question. Write {question} where it goes.",
        ),
        ("x", {"max_tokens": 0}, "max_tokens is 0; it must be 1 or more. Try 128."),
        (
            "x",
            {"stop": ["a", ""]},
            (
                "A stop string is empty, and every answer would end at once. Give the text that "
                "ends an answer, or stop=() for none."
            ),
        ),
        ("x", {"top_k": 0}, "top_k is 0; it must be 1 or more. Leave it out for all."),
    ],
)
def test_refusals(bundle: Bundle, question: str, options: dict[str, Any], message: str) -> None:
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(DOCUMENT)
        with pytest.raises(BadInput) as refusal:
            runtime.ask(memory, question, **options)
    assert str(refusal.value) == message


def test_a_memory_of_another_model(tmp_path: Path, bundle: Bundle) -> None:
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(DOCUMENT)
    files = {**bundle.manifest.files, "model.safetensors": "9"}
    with (
        fake_runtime(fake_bundle(tmp_path, files=files)) as other,
        pytest.raises(BadMemory, match="This memory belongs to the fake model "),
    ):
        other.ask(memory, "x")


def test_braces_in_a_question_are_kept() -> None:
    assert format_question("{x} {question}", "{y} {question}") == "{x} {y} {question}"


@given(
    st.lists(st.text("ab\n", max_size=4), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_stop_text_shows_all_before_the_first_stop(pieces: list[str], stop: list[str]) -> None:
    def shown() -> Iterator[str]:
        text = StopText(tuple(stop))
        for piece in pieces:
            yield text.push(piece)
            if text.stopped:
                return
        yield text.rest()

    whole = "".join(pieces)
    ends: dict[int, int] = {}
    for one in stop:
        if (at := whole.find(one)) >= 0:
            ends[at + len(one)] = min(at, ends.get(at + len(one), at))
    out = "".join(shown())
    if not ends:
        assert out == whole
    else:
        assert whole.startswith(out)
        assert not any(one in out for one in stop)
        assert len(out) >= min(ends.values())
