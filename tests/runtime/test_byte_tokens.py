"""Tokens that are bytes: exact offsets everywhere, characters never shown half."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import Recorder, byte_bundle, fake_manifest, fake_runtime, same_state
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers_ import UNICODE

from longspan.bundle import Bundle, Manifest
from longspan.errors import BadMemory
from longspan.runtime.backends import State
from longspan.runtime.backends.fake import FakeBackend
from longspan.runtime.byte_tokens import ByteTokenizer, bundle_tokenizer
from longspan.runtime.memory import describe, documents_of, span_facts
from longspan.runtime.reading import Progress
from longspan.runtime.tokens import PIECE, tokenize

TEXT = UNICODE * 300


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return byte_bundle(tmp_path)


class Saying(FakeBackend):
    """Says given bytes, whatever it read."""

    def __init__(self, says: bytes, after: int) -> None:
        super().__init__(256)
        self.says, self.after = says, after

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """The byte whose turn it is."""
        _, state = super().forward(tokens, state, keep=[], donate=donate)
        logits = np.zeros((len(keep), 256), np.float32)
        logits[:, self.says[(int(state["position"][0]) - self.after) % len(self.says)]] = 1
        return logits, state


@given(st.text())
def test_there_and_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == list(text.encode())
    assert tokenizer.decode(tokens) == text
    np.testing.assert_array_equal(tokenizer.encode(text, continues=True), tokens)


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=12), st.text(max_size=6).map(str.encode)))
def test_a_stream_shows_whole_characters_and_in_the_end_all(data: bytes) -> None:
    stream = ByteTokenizer().stream()
    pieces = [stream.push(byte) for byte in data]
    shown = "".join(pieces)
    rest = stream.rest()
    assert shown + rest == data.decode(errors="replace") == ByteTokenizer().decode(data)
    assert set(rest) <= {"\ufffd"}
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    assert "\ufffd" not in pieces or "\ufffd".encode() in data


def test_a_character_comes_with_its_last_byte() -> None:
    stream = ByteTokenizer().stream()
    assert [stream.push(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert stream.rest() == ""


def test_ids_beyond_the_bytes_are_no_text() -> None:
    stream = ByteTokenizer().stream()
    assert ByteTokenizer().decode([65, 256, 66]) == "AB"
    assert [stream.push(token) for token in (65, 300, 66)] == ["A", "", "B"]


@pytest.mark.parametrize("text", ["x" * 50_000, TEXT, "漢" * 20_000])
def test_a_text_is_cut_anywhere_and_places_are_positions(text: str) -> None:
    pieces = list(tokenize(iter([text]), ByteTokenizer()))
    data = text.encode()
    assert max(len(data[p.start.text_bytes : p.end.text_bytes].decode()) for p in pieces) == min(
        PIECE, len(text)
    )
    at = 0
    for piece in pieces:
        assert (piece.start.text_bytes, piece.end.text_bytes) == (at, at + len(piece.tokens))
        at += len(piece.tokens)
    np.testing.assert_array_equal(
        np.concatenate([p.tokens for p in pieces]), np.frombuffer(data, np.uint8)
    )


def test_a_document_is_as_many_tokens_as_bytes(bundle: Bundle) -> None:
    seen: list[Progress] = []
    with fake_runtime(bundle, chunk_tokens=49) as runtime:
        memory = runtime.read(TEXT, on_progress=seen.append)
        (read,) = memory.documents
        assert read.bytes == read.tokens == memory.tokens == len(TEXT.encode())
        assert read.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
        assert int(memory.state["position"][0]) == len(TEXT.encode())
        assert memory.byte_tokens
        assert [now.bytes_done for now in seen] == [now.tokens for now in seen]
        assert seen[-1].bytes_done == seen[-1].bytes_total


def test_bytes_that_are_no_text_are_read_as_tokens(bundle: Bundle) -> None:
    data = np.frombuffer(bytes(range(256)) * 3, np.uint8)
    with fake_runtime(bundle, chunk_tokens=50) as runtime:
        memory = runtime.read_tokens([data[:100], data[100:]])
        (read,) = memory.documents
        assert read.bytes == read.tokens == len(data)
        assert read.sha256 == hashlib.sha256(data.tobytes()).hexdigest()
        text = runtime.read("some text, read both ways")
        tokens = runtime.read_tokens([runtime.tokenizer.encode("some text, read both ways")])
        same_state(text.state, tokens.state)
        assert text.documents[0].sha256 == tokens.documents[0].sha256


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    contents = {"a.txt": "naïve 東京", "b.txt": "\ufeffsecond", "c.txt": "third 😀\n"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    return [tmp_path / name for name in contents]


def test_ranges_of_several_documents(bundle: Bundle, files: list[Path], tmp_path: Path) -> None:
    texts = [path.read_text(encoding="utf-8-sig") for path in files]
    whole = ("\n\n".join(texts) + "and on" + "more").encode()

    def pages() -> Iterator[str]:
        yield from ("and", " on")

    with fake_runtime(bundle, chunk_tokens=7) as runtime:
        memory = runtime.read(files)
        assert [document.name for document in memory.documents] == ["a.txt + b.txt + c.txt"]
        memory = runtime.read("more", memory=runtime.read(pages(), memory=memory))
        memory.save(tmp_path / "all.span")
        again = runtime.open(tmp_path / "all.span")
    assert again.documents == memory.documents
    assert again.ranges == memory.ranges
    found = [(r.name, whole[r.first_byte : r.end_byte].decode()) for r in memory.ranges]
    names = ["a.txt", "b.txt", "c.txt", "stream", "text"]
    assert found == list(zip(names, [*texts, "and on", "more"], strict=True))
    assert memory.ranges[-1].end_byte == memory.tokens == len(whole)
    assert len(describe(tmp_path / "all.span")["documents"][0]["parts"]) == 3


def test_an_interrupted_reading_of_several_still_knows_where_each_is(
    bundle: Bundle, files: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "all.span"
    with fake_runtime(bundle, chunk_tokens=8) as runtime:
        expected = runtime.read(files).ranges
    backend = Recorder(256, stop_at=2)
    with (
        fake_runtime(bundle, chunk_tokens=8, backend=backend) as runtime,
        pytest.raises(KeyboardInterrupt),
    ):
        runtime.read_to(path, files)
    with fake_runtime(bundle, chunk_tokens=8) as runtime:
        notices: list[str] = []
        report = runtime.read_to(path, files, on_notice=notices.append)
        assert notices == ["Reading goes on after 16 tokens."]
        assert report.documents == runtime.open(path).ranges == expected


def test_the_report_cites_ranges_where_tokens_are_bytes(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1234, encoding="utf-8")
    with fake_runtime(bundle) as runtime:
        report = runtime.read_to(tmp_path / "a.span", [tmp_path / "a.txt"])
    assert report.text().splitlines()[2:] == ["a.txt: bytes 0 up to 1,234"]
    assert len(replace(report, byte_tokens=False).text().splitlines()) == 2


def test_a_memory_from_before_there_were_parts(bundle: Bundle, tmp_path: Path) -> None:
    with fake_runtime(bundle) as runtime:
        memory = runtime.read("a text")
    facts = span_facts(memory.origin, memory.documents)
    rows = json.loads(facts["documents"])
    for row in rows:
        del row["parts"]
    assert documents_of({"documents": json.dumps(rows)}) == memory.documents


def test_an_answer_in_bytes(bundle: Bundle) -> None:
    document, question = "It was a whale.", " who?"
    after = len(document) + len(question)
    says = " naïve 東京 😀\n".encode()
    for cut, text in ((None, "naïve 東京 😀"), (len(says) - 2, "naïve 東京 \ufffd")):
        with fake_runtime(bundle, backend=Saying(says, after)) as runtime:
            answer = runtime.ask(
                runtime.read(document), question, stop=["\n"], max_tokens=cut or 99
            )
            pieces = list(answer)
            assert "".join(pieces) == answer.text == text
            assert answer.finish == ("length" if cut else "stop")
            assert answer.tokens == (cut or len(says))


def test_invalid_bytes_are_shown_once_and_text_goes_on(bundle: Bundle) -> None:
    says = b"a\xff\xe6\x9db\xe6\x9d\xb1c\n"
    with fake_runtime(bundle, backend=Saying(says, 2)) as runtime:
        answer = runtime.ask(runtime.read("x"), "y", stop=["\n"])
        assert answer.read() == "a\ufffd\ufffdb東c" == says[:-1].decode(errors="replace")


def test_the_manifest_says_bytes(bundle: Bundle) -> None:
    assert isinstance(bundle_tokenizer(bundle), ByteTokenizer)
    data = json.loads(json.dumps(bundle.manifest.to_json()))
    assert data["tokenizer"] == "bytes"
    assert Manifest.from_json(data).tokenizer_fingerprint() == "bytes"
    del data["tokenizer"]
    assert Manifest.from_json(data).tokenizer_fingerprint() is None
    with pytest.raises(ValueError, match="tokenizer 'chars' is unknown; it is 'bytes' or null"):
        Manifest.from_json(data | {"tokenizer": "chars"})


def test_a_memory_read_as_bytes_is_of_no_other_tokenizer(bundle: Bundle, tmp_path: Path) -> None:
    with fake_runtime(bundle) as runtime:
        runtime.read("a text").save(tmp_path / "a.span")
    other = Bundle(path=tmp_path, manifest=fake_manifest(256))
    with fake_runtime(other) as runtime, pytest.raises(BadMemory) as refusal:
        runtime.open(tmp_path / "a.span")
    assert str(refusal.value) == (
        f"The memory {tmp_path / 'a.span'} was read with the tokenizer bytes, and this bundle has "
        "none. The same text would be other tokens. Load the bundle that wrote it, or read the "
        "document again with this one."
    )
