"""Caches that are too small: refused with the arithmetic, before anything is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import VOCABULARY, Recorder, cached_bundle, fake_bundle, fake_runtime, same_state
from tokenizers_ import SOURCE, byte_level

from longspan.bundle import Bundle
from longspan.errors import BadMemory, DoesNotFit
from longspan.runtime.backends.fake import FakeBackend
from longspan.runtime.memory import entries_of
from longspan.runtime.room import Room
from longspan.runtime.span_file import read_arrays, read_header, write_span

TEXT = SOURCE[:5000]
TOKENS = np.array(byte_level().encode(TEXT).ids)
LENGTH = len(TOKENS)
NEXT_STEP = (
    "Load the bundle with tokens={0} or more; longspan plan --tokens {0} --fit tells the budget "
    "that needs."
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return cached_bundle(tmp_path)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "book.txt"


class Recording(Recorder):
    """A `Recorder` whose state grows."""

    def __init__(self, capacity: int) -> None:
        FakeBackend.__init__(self, VOCABULARY, capacity=capacity)
        self.lengths, self.kept, self.stop_at, self.fail_at = [], [], None, None


def test_a_document_that_just_fits_is_read(bundle: Bundle, book: Path) -> None:
    with fake_runtime(bundle, capacity=LENGTH) as runtime:
        memory = runtime.read(book)
    assert memory.tokens == LENGTH
    keys = memory.state["layers.0.k"]
    np.testing.assert_array_equal(keys[0, :, 0, 0], TOKENS)


@pytest.mark.parametrize("kind", ["file", "text", "list"])
def test_a_document_that_is_too_long_is_refused_before_it_is_read(
    bundle: Bundle, book: Path, kind: str
) -> None:
    backend = Recording(LENGTH - 1)
    source = {"file": book, "text": TEXT, "list": [book]}[kind]
    with (
        fake_runtime(bundle, capacity=LENGTH - 1, backend=backend) as runtime,
        pytest.raises(DoesNotFit) as refusal,
    ):
        runtime.read(source)
    assert backend.lengths == []
    name = "text" if kind == "text" else "book.txt"
    assert str(refusal.value) == (
        f"The document {name}, of {LENGTH:,} tokens, takes the caches to {LENGTH:,} entries, and "
        f"they have room for {LENGTH - 1:,}: {LENGTH - 1:,} x 8 bytes = "
        f"{(LENGTH - 1) * 8 / 1024:.1f} KiB a copy. Nothing of it was read. "
        + NEXT_STEP.format(LENGTH)
    )


def test_an_iterator_stops_at_the_chunk_that_would_overflow(bundle: Bundle, tmp_path: Path) -> None:
    """What was read before it is kept, and goes on where there is more room."""
    backend, checkpoint = Recording(1000), tmp_path / "c"
    with (
        fake_runtime(bundle, capacity=1000, backend=backend) as runtime,
        pytest.raises(DoesNotFit) as refusal,
    ):
        runtime.read(iter([TEXT]), checkpoint=checkpoint)
    assert sum(backend.lengths) == 960
    assert str(refusal.value) == (
        "The next chunk, after 960 tokens of the document, takes the caches to 1,024 entries, and "
        "they have room for 1,000: 1,000 x 8 bytes = 7.8 KiB a copy. Nothing of it was read. "
        + NEXT_STEP.format(1024)
    )
    notices: list[str] = []
    with fake_runtime(bundle, capacity=LENGTH) as runtime:
        memory = runtime.read(iter([TEXT]), checkpoint=checkpoint, on_notice=notices.append)
        same_state(memory.state, runtime.read(TEXT).state)
    assert notices == ["Reading goes on after 960 tokens."]


def test_a_resumed_reading_counts_what_was_read(bundle: Bundle, tmp_path: Path) -> None:
    with fake_runtime(bundle, capacity=1000) as runtime, pytest.raises(DoesNotFit):
        runtime.read(iter([TEXT]), checkpoint=tmp_path / "c")
    backend = Recording(1100)
    with (
        fake_runtime(bundle, capacity=1100, backend=backend) as runtime,
        pytest.raises(DoesNotFit, match="The next chunk, after 1,088 tokens of the document, "),
    ):
        runtime.read(iter([TEXT]), checkpoint=tmp_path / "c", on_notice=lambda line: None)
    assert sum(backend.lengths) == 128


def test_reading_on_counts_what_was_before(bundle: Bundle) -> None:
    with fake_runtime(bundle, capacity=LENGTH + 10) as runtime:
        memory = runtime.read_tokens([TOKENS[:11]])
        with pytest.raises(DoesNotFit, match=f"takes the caches to {LENGTH + 11:,} entries"):
            runtime.read(TEXT, memory=memory)
        with pytest.raises(DoesNotFit, match="after 1,984 tokens of the document"):
            runtime.read_tokens([TOKENS], memory=memory)
        assert runtime.read_tokens([TOKENS[11:]], memory=memory).tokens == LENGTH


def test_a_question_that_does_not_fit_is_refused(bundle: Bundle) -> None:
    with fake_runtime(bundle, capacity=12) as runtime:
        memory = runtime.read_tokens([TOKENS[:10]])
        with pytest.raises(DoesNotFit) as refusal:
            runtime.ask(memory, "abc")
        assert str(refusal.value) == (
            "The question takes the caches to 13 entries, and they have room for 12: 12 x 8 bytes "
            "= 96 B a copy. Nothing of it was read. " + NEXT_STEP.format(13)
        )


def test_an_answer_ends_where_the_caches_are_full(bundle: Bundle) -> None:
    with fake_runtime(bundle, capacity=20) as runtime:
        memory = runtime.read_tokens([TOKENS[:10]])
        answer = runtime.ask(memory, "abc", max_tokens=50)
        answer.read()
        # Each token but the last has its entry: 10 of the document, 3 of the question, 7 more.
        assert (answer.tokens, answer.finish) == (8, "room")
        whole = runtime.ask(memory, "abc", max_tokens=8)
        assert whole.read() == answer.text
        assert whole.finish == "length"


def test_other_calls_are_refused_too(bundle: Bundle) -> None:
    with fake_runtime(bundle, capacity=20) as runtime:
        assert runtime.logits(TOKENS[:20]).shape == (20, VOCABULARY)
        with pytest.raises(DoesNotFit, match="A text of 21 tokens takes the caches to 21 entries"):
            runtime.logits(TOKENS[:21])
        memory = runtime.read_tokens([TOKENS[:10]])
        assert runtime.decode_seconds(memory, 10) > 0
        with pytest.raises(DoesNotFit, match="An answer of 11 tokens takes the caches to 21"):
            runtime.decode_seconds(memory, 11)


def test_a_memory_goes_on_in_another_capacity(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "m.span"
    with fake_runtime(bundle, capacity=100) as runtime:
        runtime.read_tokens([TOKENS[:60]]).save(path)
    assert read_header(path).table["layers.0.k"][1] == (1, 60, 1, 1)
    assert entries_of(path, bundle.manifest) == 60
    with fake_runtime(bundle, capacity=70) as runtime:
        memory = runtime.read_tokens([TOKENS[60:70]], memory=runtime.open(path))
        same_state(memory.state, runtime.read_tokens([TOKENS[:70]]).state)
    with fake_runtime(bundle, capacity=59) as runtime:
        memory = runtime.open(path)
        with pytest.raises(DoesNotFit, match="The state has 60 entries in use in the cache "):
            runtime.read_tokens([TOKENS[:1]], memory=memory)
        with pytest.raises(DoesNotFit, match="The question takes the caches to 63 entries"):
            runtime.ask(memory, "abc")


def test_a_memory_that_contradicts_itself_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "m.span"
    with fake_runtime(bundle, capacity=20) as runtime:
        runtime.read_tokens([TOKENS[:10]]).save(path)
    header = read_header(path)
    arrays, facts = read_arrays(header), dict(header.facts)
    for key in ("format", "version", "kind", "sha256"):
        del facts[key]
    cut = arrays | {name: arrays[name][:, :9] for name in ("layers.0.k", "layers.0.v")}
    uneven = arrays | {"layers.0.v": arrays["layers.0.v"][:, :9]}
    messages = {
        "cut": (
            f"The memory {path} contradicts itself: layers.0.k has 9 entries, and "
            "layers.0.position says 10. Read the document again with this bundle."
        ),
        "uneven": (
            f"The memory {path} does not hold this model's state: layers.0.v is float32 [1, 9, 1, "
            "1], and the bundle has float32 [1, 10, 1, 1]. Read the document again with this "
            "bundle."
        ),
    }
    for name, changed in (("cut", cut), ("uneven", uneven)):
        write_span(path, kind="memory", facts=facts, arrays=changed)
        with fake_runtime(bundle, capacity=20) as runtime, pytest.raises(BadMemory) as refusal:
            runtime.open(path)
        assert str(refusal.value) == messages[name]


def test_a_state_of_fixed_size_has_room_for_anything(tmp_path: Path) -> None:
    room = Room.of(fake_bundle(tmp_path).manifest, 0)
    assert not room.limited
    assert room.after(TOKENS).fits
