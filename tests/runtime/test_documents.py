"""Documents: pieces, counts, and every refusal, whole messages."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Any

import pytest

from longspan.errors import BadDocument
from longspan.runtime.documents import PIECE, open_document, read_text

ACCENTS = "a€é漢😀" * 40_000


def text_of(source: Any) -> str:
    return "".join(open_document(source).pieces())


def test_a_file_is_streamed_in_short_pieces_and_no_character_is_split(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(ACCENTS, encoding="utf-8")
    document = open_document(path)
    pieces = list(document.pieces())
    assert "".join(pieces) == ACCENTS
    assert max(map(len, pieces)) <= PIECE
    assert len(pieces) > 5
    assert document.bytes_total == len(ACCENTS.encode())
    assert document.name == "book.txt"
    assert "".join(document.pieces()) == ACCENTS


def test_a_byte_order_mark_is_dropped_and_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(codecs.BOM_UTF8 + b"one")
    assert text_of(path) == "one" == read_text(path)
    assert open_document(path).bytes_total == 3


def test_line_ends_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"one\r\ntwo\rthree\n")
    assert text_of(path) == "one\r\ntwo\rthree\n"


def test_several_documents_are_joined(tmp_path: Path) -> None:
    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    first.write_text("one")
    second.write_text("two")
    document = open_document([first, str(second), "a text"])
    assert "".join(document.pieces()) == "one\n\ntwo\n\na text"
    assert document.bytes_total == len("one\n\ntwo\n\na text")
    assert document.name == "1.txt + 2.txt + text"
    assert text_of((first,)) == "one"


@pytest.mark.parametrize("text", ["Call me Ishmael.", "word", "a/b c", "é" * 200_000])
def test_a_str_that_is_no_path_is_the_text(text: str) -> None:
    document = open_document(text)
    assert "".join(document.pieces()) == text
    assert document.bytes_total == len(text.encode())


def test_a_str_that_names_a_file_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "name with spaces"
    path.write_text("inside")
    assert text_of(str(path)) == "inside"


def test_an_iterator_is_one_text_and_is_read_once() -> None:
    document = open_document(iter(["a.txt", " ", "b"]))
    assert not document.again
    assert document.bytes_total is None
    assert "".join(document.pieces()) == "a.txt b"


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "no.txt"
    with pytest.raises(BadDocument) as refusal:
        open_document(path)
    assert str(refusal.value) == f"The document {path} does not exist. Check the name."


@pytest.mark.parametrize("name", ["no.txt", "folder/file", "https://example.org/a"])
def test_a_str_that_only_looks_like_a_path(name: str) -> None:
    with pytest.raises(BadDocument) as refusal:
        open_document(name)
    assert str(refusal.value) == (
        f"The document {name!r} looks like a path, and no such file exists. Check the name; to "
        "read these characters as the text itself, pass iter([text])."
    )


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadDocument) as refusal:
        open_document(tmp_path)
    assert str(refusal.value) == (
        f"The document {tmp_path} is a folder. Name the files in it, as in {tmp_path}/*.txt."
    )


@pytest.mark.parametrize("content", ["", " \n\t \n"])
def test_a_blank_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "blank"
    path.write_text(content)
    with pytest.raises(BadDocument) as refusal:
        text_of(path)
    name = path if content == "" else "blank"
    assert str(refusal.value) == (
        f"The document {name} is empty or only white space. Give a document with text in it."
    )


@pytest.mark.parametrize("source", ["", "  \n", iter([]), iter(["", " "])])
def test_a_blank_text(source: Any) -> None:
    with pytest.raises(BadDocument, match="is empty or only white space"):
        text_of(source)


def test_no_documents() -> None:
    with pytest.raises(BadDocument) as refusal:
        open_document([])
    assert str(refusal.value) == (
        "There is no document to read: the list is empty. Give at least one."
    )


@pytest.mark.parametrize("before", [0, 3, PIECE - 1, PIECE, PIECE + 5])
def test_a_binary_file_names_the_byte(tmp_path: Path, before: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * before + b"\0y")
    with pytest.raises(BadDocument) as refusal:
        text_of(path)
    assert str(refusal.value) == (
        f"The document {path} is not text: byte {before:,} is NUL. Convert it to UTF-8 text "
        f"first, for instance with: pdftotext {path}"
    )


def test_utf_16_is_told_how_to_convert(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello", encoding="utf-16")
    with pytest.raises(BadDocument) as refusal:
        text_of(path)
    assert str(refusal.value) == (
        f"The document {path} is not text: byte 3 is NUL. Convert it to UTF-8 text first, for "
        f"instance with: iconv -f UTF-16 -t UTF-8 {path} > utf8.txt"
    )


@pytest.mark.parametrize("before", ["", "a", "é" * 40_000, "x" * (PIECE - 1), "x" * PIECE])
def test_invalid_utf_8_names_the_byte(tmp_path: Path, before: str) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(before.encode() + b"\xe9 caf")
    with pytest.raises(BadDocument) as refusal:
        text_of(path)
    assert str(refusal.value) == (
        f"The document {path} is not UTF-8 text: byte {len(before.encode()):,} is 0xe9 (invalid "
        "continuation byte). Convert it first, for instance with: "
        f"iconv -f ISO-8859-1 -t UTF-8 {path} > utf8.txt"
    )


def test_utf_8_that_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "cut.txt"
    path.write_bytes("ab€".encode()[:-1])
    with pytest.raises(BadDocument, match=r"byte 2 is 0xe2 \(unexpected end of data\)"):
        text_of(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(BadDocument) as refusal:
        open_document(path)
    assert str(refusal.value) == (
        f"The document {path} cannot be read: Permission denied. Check the file and its "
        "permissions."
    )


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("x")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadDocument, match=r"cannot be read: Permission denied\. Check the file"):
        open_document(path)


def test_an_iterator_of_bytes() -> None:
    with pytest.raises(BadDocument) as refusal:
        text_of(iter([b"bytes"]))
    assert str(refusal.value) == (
        "A document given as an iterator must yield str; it yielded bytes. Decode it first; give "
        "files as a list of paths."
    )


@pytest.mark.parametrize("source", ["a \udc80", iter(["a \udc80"])])
def test_half_a_surrogate_pair(source: Any) -> None:
    with pytest.raises(BadDocument) as refusal:
        text_of(source)
    assert str(refusal.value) == (
        "The text cannot be written as UTF-8: it holds U+DC80, half of a surrogate pair. Decode "
        "its bytes again with the right encoding."
    )
