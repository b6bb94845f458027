"""A token after every sentence: where, whatever the cuts, and never in what is shown."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import Recorder, fake_bundle, fake_runtime, same_state
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers_ import SOURCE, byte_level, metaspace, prepended, slashes, wrapped

from longspan.bundle import Bundle, Manifest
from longspan.errors import BadMemory
from longspan.runtime.byte_tokens import bundle_tokenizer
from longspan.runtime.sentences import SentenceTokenizer
from longspan.runtime.tokens import PIECE, Tokens, cut, tokenize

TOKEN = 690
KINDS = pytest.mark.parametrize("make", [byte_level, slashes, metaspace, prepended])
TEXT = 'It rained on the quay. Did it? "It did!" (So they say...) And then it cleared.\n' * 700


def sentences(make: Callable[[], HuggingFaceTokenizer] = byte_level) -> SentenceTokenizer:
    return SentenceTokenizer(wrapped(make()), TOKEN)


def marked(tokenizer: SentenceTokenizer, text: str) -> str:
    """The text with | where the token stands."""
    shown, part = "", []
    for token in [*tokenizer.encode(text).tolist(), TOKEN]:
        if token != TOKEN:
            part.append(token)
            continue
        shown += tokenizer.decode(part) + "|"
        part = []
    return shown[:-1]


@pytest.mark.parametrize(
    "text",
    [
        "It rained.| It poured!| Why?|",
        "One.|\nTwo.|\n\nThree",
        'He said "no."| She left.)]|\tAnd',
        "Wait...| What?!|",
        "3.14 and example.com are no ends",
        "Mr.| Smith knows no rule.|",
        "no end",
        " . ",
    ],
)
def test_where_a_sentence_ends(text: str) -> None:
    bare = text.replace("|", "")
    expected = text if text != " . " else " .| "
    assert marked(sentences(), bare) == expected


@KINDS
def test_between_its_tokens_the_text_is_the_text(make: Callable[[], HuggingFaceTokenizer]) -> None:
    tokenizer, inner = sentences(make), wrapped(make())
    tokens = tokenizer.encode(TEXT[:2000])
    assert tokens.dtype == np.int64
    assert (tokens == TOKEN).sum() == TEXT[:2000].count(".") - 2 * TEXT[:2000].count("...") + (
        TEXT[:2000].count("?") + TEXT[:2000].count("!")
    )
    assert tokenizer.decode(tokens) == inner.decode(inner.encode(TEXT[:2000]))
    stream = tokenizer.stream()
    shown = "".join(stream.push(int(token)) for token in tokens) + stream.rest()
    assert shown == tokenizer.decode(tokens)
    assert (tokenizer.vocab_size, tokenizer.cut_marks) == (inner.vocab_size, inner.cut_marks)


def joined(tokenizer: SentenceTokenizer, text: str, limit: int) -> list[int]:
    pieces = cut([text], tokenizer.cut_marks, limit)
    parts = (tokenizer.encode(piece, continues=i > 0) for i, piece in enumerate(pieces))
    return [int(token) for part in parts for token in part]


@KINDS
@pytest.mark.parametrize("limit", [700, 1000])
def test_the_cuts_do_not_matter(make: Callable[[], HuggingFaceTokenizer], limit: int) -> None:
    text = TEXT[:4000] + SOURCE[:6000]
    tokenizer = sentences(make)
    assert joined(tokenizer, text, limit) == tokenizer.encode(text).tolist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["ab", ".", "!", " ", "\n", '"', ")", "é"]), max_size=120))
def test_good_places_never_change_tokens(parts: list[str]) -> None:
    text, tokenizer = "".join(parts), sentences()
    pieces = list(cut([text], tokenizer.cut_marks, 40))
    # A stretch without a good place is cut anyway.
    if all(one[-1:] == "\n" or two[:1] == " " for one, two in itertools.pairwise(pieces)):
        assert joined(tokenizer, text, 40) == tokenizer.encode(text).tolist()


def all_tokens(tokenizer: SentenceTokenizer, text: str) -> Tokens:
    return np.concatenate([piece.tokens for piece in tokenize([text], tokenizer)])


def test_a_document_is_read_with_them(tmp_path: Path) -> None:
    """In chunks, and on from a checkpoint in the middle, and questions too."""
    assert len(TEXT) > 3 * PIECE
    bundle = fake_bundle(tmp_path, sentence_token=TOKEN)
    tokenizer = bundle_tokenizer(bundle)
    assert isinstance(tokenizer, SentenceTokenizer)
    partial = tmp_path / "book.partial"
    with fake_runtime(bundle, chunk_tokens=256) as runtime:
        whole = runtime.read(TEXT)
        assert whole.tokens == len(all_tokens(tokenizer, TEXT))
    with (
        fake_runtime(bundle, chunk_tokens=256, backend=Recorder(stop_at=80)) as runtime,
        pytest.raises(KeyboardInterrupt),
    ):
        runtime.read(TEXT, checkpoint=partial, checkpoint_seconds=0)
    with fake_runtime(bundle, chunk_tokens=100) as runtime:
        resumed = runtime.read(TEXT, checkpoint=partial, on_notice=lambda line: None)
        same_state(resumed.state, whole.state)
        recorder = Recorder()
    with fake_runtime(bundle, backend=recorder) as runtime:
        runtime.ask(whole, "Is it? Yes.", max_tokens=1).read()
        asked = tokenizer.encode("Is it? Yes.", continues=True)
        assert sum(recorder.lengths) == len(asked)
        assert (asked == TOKEN).sum() == 2


def test_an_answer_does_not_show_them(tmp_path: Path) -> None:
    """The fake model says what followed: a sentence, its token, and the next one."""
    bundle = fake_bundle(tmp_path, sentence_token=TOKEN)
    with fake_runtime(bundle) as runtime:
        memory = runtime.read("Rain. Rain. Rain. ")
        answer = runtime.ask(memory, "Rain.", max_tokens=12)
        said = answer.read()
    assert said.startswith("Rain. Rain.")
    assert answer.tokens == 12


def test_the_same_tokenizer_without_them_is_another(tmp_path: Path, bundle: Bundle) -> None:
    plain = fake_bundle(tmp_path)
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(TEXT[:300])
    with fake_runtime(plain) as runtime, pytest.raises(BadMemory, match="was read with the token"):
        runtime.read(TEXT, memory=memory)
    other = replace(bundle.manifest, sentence_token=TOKEN + 1)
    names = {m.tokenizer_fingerprint() for m in (plain.manifest, bundle.manifest, other)}
    assert len(names) == 3


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path, sentence_token=TOKEN)


def test_a_manifest_from_before_has_none(bundle: Bundle) -> None:
    data = bundle.manifest.to_json()
    assert Manifest.from_json(data).sentence_token == TOKEN
    del data["sentence_token"]
    assert Manifest.from_json(data).sentence_token is None
