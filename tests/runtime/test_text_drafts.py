"""Drafts by a model with other tokens: bytes for words, words for bytes, words for other words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import byte_bundle, fake_bundle, fake_draft, fake_runtime
from numpy.typing import NDArray
from small_models import Recurrent
from tokenizers_ import UNICODE, byte_level, metaspace, save

from longspan.bundle import TOKENIZER, WEIGHTS, Bundle, file_sha256
from longspan.runtime.asking import Answer
from longspan.runtime.backends import Backend, State
from longspan.runtime.backends.fake import FakeBackend
from longspan.runtime.byte_tokens import ByteTokenizer, bundle_tokenizer
from longspan.runtime.drafting import REREAD_CHARACTERS

PLAIN = " Ahab, captain of the Pequod, who lost a leg to the whale and sails to find it again." * 3
MIXED = " naïve Zoë — 東京 は大きい。 Привет, мир! 😀 x" + UNICODE[:60]
NO_SPACE = "東京は大きい" * 30
QUESTION = "Who?"


class Script(FakeBackend):
    """Says a text after the question, however the tokens that it reads of it were cut.

    Attributes:
        passes: tokens of each call.
    """

    def __init__(self, bundle: Bundle, text: str) -> None:
        super().__init__(bundle.manifest.config.vocab_size)
        self.text, self.tokenizer = text, bundle_tokenizer(bundle)
        self.passes: list[int] = []

    def new_state(self) -> State:
        """Nothing read, nothing to say."""
        return {"read": np.zeros(0, np.int64), "next": np.zeros(0, np.int64)}

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """The next token of the text, or token 0 after its end."""
        self.passes.append(len(tokens))
        read, following = state["read"], state["next"]
        kept = {index % len(tokens) for index in keep}
        rows = []
        for index, token in enumerate(tokens):
            read = np.append(read, token)
            following = following[1:] if token in following[:1] else self._rest(read)
            if index in kept:
                row = np.zeros(self.vocab_size, np.float32)
                row[following[0] if len(following) else 0] = 1
                rows.append(row)
        logits = np.array(rows, np.float32).reshape(len(rows), self.vocab_size)
        if donate:
            state.clear()
        return logits, {"read": read, "next": following}

    def _rest(self, read: NDArray[np.int64]) -> NDArray[np.int64]:
        if isinstance(self.tokenizer, ByteTokenizer):
            said = bytes(read.tolist()).partition(QUESTION.encode())[2]
            return np.frombuffer(self.text.encode()[len(said) :], np.uint8).astype(np.int64)
        said_text = self.tokenizer.decode(read).partition(QUESTION)[2]
        return self.tokenizer.encode(self.text[len(said_text) :], continues=True)


def words(folder: Path, make: Callable[[], Any] = byte_level) -> Bundle:
    """A bundle whose tokens are those of a file."""
    folder.mkdir(exist_ok=True)
    path = save(make(), folder / TOKENIZER)
    files = {WEIGHTS: "1" * 64, TOKENIZER: file_sha256(path)}
    return fake_bundle(folder, tokenizer=False, files=files)


def ask(
    target: Bundle, model: Backend, helper: Bundle | None, draft: Any, **options: Any
) -> Answer:
    small = None if helper is None else fake_draft(helper, draft)
    with fake_runtime(target, backend=model, draft=small) as runtime:
        memory = runtime.read("It was a whale. ")
        answer = runtime.ask(memory, QUESTION, **{"stop": []} | options)
        answer.read()
        return answer


def tokens_of(bundle: Bundle, text: str) -> int:
    return len(bundle_tokenizer(bundle).encode(text, continues=True))


PAIRS: dict[str, tuple[Callable[[Path], Bundle], Callable[[Path], Bundle], int]] = {
    "words for bytes": (byte_bundle, words, 4),
    "bytes for words": (words, byte_bundle, 12),
    "words for other words": (lambda folder: words(folder, metaspace), words, 4),
}


@pytest.mark.parametrize("text", [PLAIN, MIXED, NO_SPACE], ids=["plain", "mixed", "no space"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_drafter_that_knows_the_answer(tmp_path: Path, pair: str, text: str) -> None:
    make_target, make_draft, draft_tokens = PAIRS[pair]
    target, helper = make_target(tmp_path / "a"), make_draft(tmp_path / "b")
    count = tokens_of(target, text)
    plain = ask(target, Script(target, text), None, None, max_tokens=count)
    model, draft = Script(target, text), Script(helper, text)
    drafted = ask(target, model, helper, draft, max_tokens=count, draft_tokens=draft_tokens)
    assert (drafted.text, drafted.tokens) == (plain.text, plain.tokens)
    report = drafted.draft
    assert report is not None
    assert report.acceptance_rate is not None
    if pair != "words for other words":  # those do not have all of these characters
        assert plain.text == text.removeprefix(" ")
        assert report.acceptance_rate > 0.7
        assert report.forwards < 0.7 * count
    if (pair, text) == ("words for bytes", PLAIN):
        assert report.acceptance_rate == 1
        assert report.forwards < count / 6
    assert max(draft.passes[1:]) <= 3 * REREAD_CHARACTERS


@pytest.mark.parametrize("pair", PAIRS)
def test_answers_of_random_models_are_their_own(tmp_path: Path, pair: str) -> None:
    """Bytes that are no text, too: where texts cannot be compared, nothing is drafted."""
    make_target, make_draft, draft_tokens = PAIRS[pair]
    target, helper = make_target(tmp_path / "a"), make_draft(tmp_path / "b")
    sizes = [bundle.manifest.config.vocab_size for bundle in (target, helper)]
    proposed = 0
    for seed in range(20):
        options = {"max_tokens": 50, "draft_tokens": draft_tokens}
        plain = ask(target, Recurrent(seed, vocab_size=sizes[0]), None, None, max_tokens=50)
        model, draft = (Recurrent(seed, vocab_size=size) for size in sizes)
        drafted = ask(target, model, helper, draft, **options)
        assert (drafted.text, drafted.tokens) == (plain.text, plain.tokens)
        assert drafted.draft is not None
        proposed += drafted.draft.proposed
    assert proposed > 50


def test_the_draft_ends_where_its_text_is_not_whole(tmp_path: Path) -> None:
    """Three bytes of a character of four are not proposed; nor is anything amid a character."""
    target, helper = byte_bundle(tmp_path / "a"), byte_bundle(tmp_path / "b")
    other = words(tmp_path / "c")
    text = "ab😀cd"
    model, draft = Script(target, text), Script(other, text)
    answer = ask(target, model, other, draft, max_tokens=len(text.encode()), draft_tokens=1)
    assert answer.text == text
    same = ask(
        target, Script(target, text), helper, Script(helper, text),
        max_tokens=len(text.encode()), draft_tokens=3,
    )  # fmt: skip
    assert same.text == text
    assert same.draft is not None
    assert same.draft.acceptance_rate == 1  # bytes for bytes are compared as tokens, never as text


def test_the_draft_model_ends_the_answer_earlier(tmp_path: Path) -> None:
    target, helper = byte_bundle(tmp_path / "a"), words(tmp_path / "b")
    short = PLAIN[:40]
    ended = fake_bundle(helper.path, tokenizer=False, files=helper.manifest.files, eos=0)
    draft = Script(ended, short)
    answer = ask(target, Script(target, PLAIN), ended, draft, max_tokens=80)
    assert answer.text == PLAIN[1:80]
    assert answer.draft is not None
    assert answer.draft.accepted <= len(short)
