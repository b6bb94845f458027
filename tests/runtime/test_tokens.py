"""Tokens of the parts are the tokens of the whole; characters are never shown half."""

from __future__ import annotations

import hashlib
import itertools
import lzma
import os
import random
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers_ import SOURCE, UNICODE, byte_level, metaspace, prepended, save, slashes, wrapped

from longspan.errors import BadBundle
from longspan.runtime.tokens import (
    PIECE,
    Detokenizer,
    FileTokenizer,
    TextDiffersError,
    cut,
    load_tokenizer,
    tokenize,
)

DATA = Path(os.environ.get("LONGSPAN_DATA", "/nowhere"))
NEOX = DATA / "tokenizers" / "gpt-neox-20b.json"
NOVELS = DATA / "text" / "novels-train.txt.xz"
needs_data = pytest.mark.skipif(
    not NEOX.is_file(), reason="needs LONGSPAN_DATA with tokenizers/gpt-neox-20b.json"
)
KINDS = pytest.mark.parametrize("make", [byte_level, slashes, metaspace, prepended])


def whole(inner: HuggingFaceTokenizer, text: str) -> list[int]:
    return list(inner.encode(text, add_special_tokens=False).ids)


def in_parts(tokenizer: FileTokenizer, text: str, limit: int) -> list[int]:
    pieces = cut([text], tokenizer.cut_marks, limit)
    parts = (tokenizer.encode(piece, continues=i > 0) for i, piece in enumerate(pieces))
    return [int(token) for part in parts for token in part]


@KINDS
@pytest.mark.parametrize("limit", [700, 1000, 7777])
def test_parts_are_the_whole(make: Callable[[], HuggingFaceTokenizer], limit: int) -> None:
    inner, text = make(), (SOURCE[:30_000] + UNICODE) * 2
    marks = wrapped_once(make).cut_marks
    assert all_good(list(cut([text], marks, limit)), marks)
    assert in_parts(wrapped(inner), text, limit) == whole(inner, text)


def test_cut_marks_are_found_by_trying() -> None:
    assert wrapped(byte_level()).cut_marks == " \n"
    assert wrapped(slashes()).cut_marks == " "
    assert wrapped(metaspace()).cut_marks == " "
    assert wrapped(prepended()).cut_marks == " "


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.sampled_from(list("ab1.' \n\r\t!/é漢\u00a0\u0301\x1c😀")), max_size=300))
def test_good_places_never_change_tokens(text: str) -> None:
    for make in (byte_level, slashes, metaspace, prepended):
        tokenizer, inner = wrapped_once(make), make()
        pieces = list(cut([text], tokenizer.cut_marks, 40))
        if all_good(pieces, tokenizer.cut_marks):
            assert in_parts(tokenizer, text, 40) == whole(inner, text)


_wrapped: dict[str, FileTokenizer] = {}


def wrapped_once(make: Callable[[], HuggingFaceTokenizer]) -> FileTokenizer:
    name = getattr(make, "__name__", "")
    return _wrapped.setdefault(name, wrapped(make()))


def all_good(pieces: list[str], marks: str) -> bool:
    """Whether every cut stands at a good place; a text without one is cut anyway."""
    patterns = {" ": r"\S\Z| \S", "\n": r"\S\n\Z|\S"}
    sides = [patterns[mark].split("|") for mark in marks]
    return all(
        any(re.search(left, one) and re.match(right, two) for left, right in sides)
        for one, two in itertools.pairwise(pieces)
    )


@needs_data
def test_parts_are_the_whole_with_the_tokenizer_of_mamba() -> None:
    inner, tokenizer = HuggingFaceTokenizer.from_file(str(NEOX)), load_tokenizer(NEOX)
    with lzma.open(NOVELS, "rt", encoding="utf-8") as file:
        novel = file.read(300_000)
    text = novel + SOURCE[:50_000] + UNICODE * 20
    assert tokenizer.cut_marks == " \n"
    for limit in (1000, PIECE):
        assert in_parts(tokenizer, text, limit) == whole(inner, text)


def test_cuts_depend_on_the_text_alone() -> None:
    text, rng = (SOURCE + UNICODE) * 2, random.Random(0)
    once = list(cut([text]))
    assert "".join(once) == text
    assert max(map(len, once)) <= PIECE
    assert list(cut(text)) == once  # one character at a time
    for _ in range(5):
        ends = sorted(rng.sample(range(len(text)), 20))
        parts = [text[a:b] for a, b in zip([0, *ends], [*ends, None], strict=True)]
        assert list(cut(parts)) == once


@pytest.mark.parametrize("text", ["x" * 50_000, "  " * 25_000, "\n" * 50_000, "漢" * 50_000])
def test_a_text_without_a_place_is_cut_anyway(text: str) -> None:
    pieces = list(cut([text]))
    assert [len(piece) for piece in pieces] == [PIECE, PIECE, PIECE, 50_000 - 3 * PIECE]
    tokens = np.concatenate([p.tokens for p in tokenize([text], wrapped_once(byte_level))])
    assert wrapped_once(byte_level).decode(tokens) == text


@pytest.mark.parametrize("text", ["", "a", "a" * PIECE])
def test_short_texts_are_one_piece(text: str) -> None:
    assert list(cut([text])) == ([text] if text else [])


def test_places_tell_bytes_and_hash() -> None:
    text = UNICODE * 300
    pieces = list(tokenize([text], wrapped_once(byte_level)))
    assert len(pieces) > 2
    data = text.encode()
    for before, after in itertools.pairwise(pieces):
        assert before.end == after.start
    for piece in pieces:
        there = data[: piece.start.text_bytes]
        assert piece.start.text_sha256 == hashlib.sha256(there).hexdigest()
        assert piece.tokens.dtype == np.int64
    assert pieces[-1].end.text_bytes == len(data)


def test_tokenizing_goes_on_at_a_place() -> None:
    text, tokenizer = SOURCE, wrapped_once(byte_level)
    pieces = list(tokenize([text], tokenizer))
    later = list(tokenize(iter(text), tokenizer, after=pieces[2].start))
    assert [p.end for p in later] == [p.end for p in pieces[2:]]
    np.testing.assert_array_equal(later[0].tokens, pieces[2].tokens)


@pytest.mark.parametrize("other", ["X" + SOURCE[1:], SOURCE[:100], "é" + SOURCE])
def test_another_text_does_not_go_on(other: str) -> None:
    tokenizer = wrapped_once(byte_level)
    place = list(tokenize([SOURCE], tokenizer))[2].start
    with pytest.raises(TextDiffersError):
        list(tokenize([other], tokenizer, after=place))


@KINDS
@pytest.mark.parametrize("text", [" and so", "and so", "\n\nquestion: x", "?"])
def test_what_continues_a_text_has_no_space_put_before(
    make: Callable[[], HuggingFaceTokenizer], text: str
) -> None:
    tokenizer = wrapped_once(make)
    before = tokenizer.encode("It was\n")
    both = [*before, *tokenizer.encode(text, continues=True)]
    assert tokenizer.decode(both) == "It was\n" + text


def test_memory_does_not_grow_with_the_text() -> None:
    tokenizer, rng = wrapped(byte_level()), random.Random(0)

    def words() -> Iterator[str]:  # each new, so that a cache of words would grow
        for _ in range(20_000):
            yield "".join(rng.choices("abcdefghijklmnop", k=12)) + " "

    tracemalloc.start()
    count = sum(len(piece.tokens) for piece in tokenize(words(), tokenizer))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = psutil.Process().memory_info().rss
    for _ in range(3):
        count += sum(len(piece.tokens) for piece in tokenize(words(), tokenizer))
    assert count > 500_000
    assert peak < 4 * 2**20
    assert psutil.Process().memory_info().rss - held < 16 * 2**20


@KINDS
def test_detokenizing_piece_by_piece(make: Callable[[], HuggingFaceTokenizer]) -> None:
    tokenizer = wrapped_once(make)
    ids = tokenizer.encode("Zoë's 東京 😀 naïve\n  don't 12")
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(int(token)) for token in ids]
    assert "".join(pieces) == tokenizer.decode(ids)
    if make is byte_level:
        assert not any("\ufffd" in piece for piece in pieces)
        assert "" in pieces


def test_bytes_that_never_become_a_character_are_shown_as_such() -> None:
    tokenizer = wrapped_once(byte_level)
    lone = int(tokenizer.encode("é")[0]) if len(tokenizer.encode("é")) > 1 else None
    first = lone or int(tokenizer.encode("😀")[0])
    letter = int(tokenizer.encode("a")[0])
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(token) for token in [first, letter, letter]]
    assert "".join(pieces).endswith("aa")
    assert pieces[0] == ""


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(BadBundle) as refusal:
        load_tokenizer(path)
    assert str(refusal.value).startswith(
        f"{path} is no tokenizer that Hugging Face tokenizers can read ("
    )
    assert str(refusal.value).endswith(
        "Export the checkpoint again with: longspan export CHECKPOINT BUNDLE --tokenizer FILE"
    )


def test_a_file_is_read_without_truncation_or_padding(tmp_path: Path) -> None:
    inner = HuggingFaceTokenizer.from_str(byte_level().to_str())
    inner.enable_truncation(3)
    inner.enable_padding(length=8)
    tokenizer = load_tokenizer(save(inner, tmp_path / "tokenizer.json"))
    assert len(tokenizer.encode("a b c d e f g h i j k l")) > 8
    assert len(tokenizer.encode("a")) == 1
    assert tokenizer.vocab_size == 700
