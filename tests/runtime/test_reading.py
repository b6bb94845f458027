"""Chunks, progress, the budget, and readings that are interrupted and go on."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bundles import Recorder, fake_bundle, fake_runtime, same_state
from tokenizers_ import SOURCE, byte_level

from longspan.bundle import WEIGHTS, Bundle
from longspan.errors import BadDocument, BadInput, BadMemory, BudgetExceeded
from longspan.runtime import measured
from longspan.runtime.device_memory import Reading
from longspan.runtime.interrupts import interrupts_wait
from longspan.runtime.memory import Memory, describe
from longspan.runtime.reader import token_pieces
from longspan.runtime.reading import Progress, cut_chunks
from longspan.runtime.tokens import Tokens

TEXT = SOURCE[:60_000]
TOKENS = np.array(byte_level().encode(TEXT).ids)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "book.txt"


def read(bundle: Bundle, source: Path | str | Iterator[str], chunk_tokens: int = 64) -> Memory:
    with fake_runtime(bundle, chunk_tokens=chunk_tokens) as runtime:
        return runtime.read(source)


def pieces_of(*lengths: int) -> list[Tokens]:
    ends = np.cumsum(lengths)
    return [np.arange(end - n, end, dtype=np.int64) for end, n in zip(ends, lengths, strict=True)]


@pytest.mark.parametrize("lengths", [(1,), (0, 1), (5,), (6,), (7, 0, 5, 1, 30), (1,) * 24, (23,)])
@pytest.mark.parametrize("chunk_tokens", [1, 2, 6, 100])
def test_chunks_are_full_but_the_last(lengths: tuple[int, ...], chunk_tokens: int) -> None:
    total = sum(lengths)
    chunks = list(cut_chunks(token_pieces(pieces_of(*lengths)), chunk_tokens))
    np.testing.assert_array_equal(np.concatenate([c.tokens for c in chunks]), np.arange(total))
    assert [c.last for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert {len(c.tokens) for c in chunks[:-1]} <= {chunk_tokens}
    assert 1 <= len(chunks[-1].tokens) <= chunk_tokens
    assert chunks[-1].place.text_bytes == 8 * total


def test_each_chunk_tells_where_to_go_on() -> None:
    pieces = list(token_pieces(pieces_of(7, 0, 5, 1, 30)))
    for chunk in list(cut_chunks(pieces, 3))[:-1]:
        later = [p for p in pieces if p.start.text_bytes >= chunk.place.text_bytes]
        while not len(later[0].tokens):
            later.pop(0)
        rest = next(iter(cut_chunks(later, 100, begun=len(chunk.begun))))
        assert rest.tokens[0] == chunk.tokens[-1] + 1
        np.testing.assert_array_equal(later[0].tokens[: len(chunk.begun)], chunk.begun)


@pytest.mark.parametrize("lengths", [(), (0, 0)])
def test_no_tokens(lengths: tuple[int, ...]) -> None:
    with pytest.raises(BadDocument) as refusal:
        list(cut_chunks(token_pieces(pieces_of(*lengths)), 4))
    assert str(refusal.value) == ("The document has no tokens. Give a document with text in it.")


@pytest.mark.parametrize("chunk_tokens", [7, 64, 1000, 100_000])
def test_any_chunk_gives_the_same_memory(bundle: Bundle, book: Path, chunk_tokens: int) -> None:
    backend = Recorder()
    with fake_runtime(bundle, chunk_tokens=chunk_tokens, backend=backend) as runtime:
        memory = runtime.read(book)
    logits, state = Recorder().forward(TOKENS, Recorder().new_state(), keep=[-1])
    same_state(memory.state, dict(state))
    np.testing.assert_array_equal(memory.last_logits, logits[0])
    assert memory.tokens == len(TOKENS) == sum(backend.lengths)
    assert set(backend.lengths[:-1]) <= {chunk_tokens}
    assert backend.kept == [[]] * (len(backend.kept) - 1) + [[-1]]


def test_every_kind_of_source_reads_the_same(bundle: Bundle, book: Path) -> None:
    file, text, stream = (read(bundle, s) for s in (book, TEXT, iter(TEXT)))
    same_state(file.state, text.state)
    same_state(file.state, stream.state)
    (document,) = file.documents
    assert document.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert document.bytes == len(TEXT.encode())
    assert document.name == "book.txt"
    assert document.sha256 == text.documents[0].sha256 == stream.documents[0].sha256


def test_progress(bundle: Bundle, book: Path) -> None:
    seen: list[Progress] = []
    with fake_runtime(bundle, chunk_tokens=1000) as runtime:
        runtime.read(book, on_progress=seen.append)
    tokens = [progress.tokens for progress in seen]
    assert tokens == [*range(1000, len(TOKENS), 1000), len(TOKENS)]
    done = [progress.bytes_done for progress in seen]
    assert done == sorted(set(done))
    assert abs(done[0] - len(byte_level().decode(TOKENS[:1000].tolist()).encode())) < 1000
    assert done[-1] == seen[-1].bytes_total == len(TEXT.encode())
    assert all(p.seconds > 0 and p.tokens_per_second > 0 for p in seen)
    assert all(0 < p.memory_bytes <= p.budget_bytes for p in seen)


def test_an_iterator_has_no_total(bundle: Bundle) -> None:
    seen: list[Progress] = []
    with fake_runtime(bundle) as runtime:
        runtime.read(iter([TEXT]), on_progress=seen.append)
    assert {progress.bytes_total for progress in seen} == {None}


class Stopper:
    """Interrupts a reading after so many chunks."""

    def __init__(self, chunks: int) -> None:
        self.left = chunks

    def __call__(self, progress: Progress) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def interrupt(bundle: Bundle, source: Path | str, checkpoint: Path, chunks: int) -> None:
    with fake_runtime(bundle) as runtime, pytest.raises(KeyboardInterrupt):
        runtime.read(source, checkpoint=checkpoint, on_progress=Stopper(chunks))


@pytest.mark.parametrize("chunks", [1, 2, 50, 100, 200])
def test_an_interrupted_reading_goes_on(
    bundle: Bundle, book: Path, tmp_path: Path, chunks: int
) -> None:
    checkpoint, notices, backend = tmp_path / "c", list[str](), Recorder()
    interrupt(bundle, book, checkpoint, chunks)
    assert describe(checkpoint)["kind"] == "checkpoint"
    with fake_runtime(bundle, backend=backend) as runtime:
        memory = runtime.read(book, checkpoint=checkpoint, on_notice=notices.append)
        assert runtime.measured.prefill_tokens == len(TOKENS) - 64 * chunks
    whole = read(bundle, book)
    same_state(memory.state, whole.state)
    np.testing.assert_array_equal(memory.last_logits, whole.last_logits)
    assert memory.documents == whole.documents
    assert sum(backend.lengths) == len(TOKENS) - 64 * chunks
    assert notices == [f"Reading goes on after {64 * chunks:,} tokens."]
    assert not checkpoint.exists()


def test_interrupted_again_and_again_with_other_chunks(
    bundle: Bundle, book: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "c"
    for chunk_tokens in (1, 64, 5, 333):
        with (
            fake_runtime(bundle, chunk_tokens=chunk_tokens) as runtime,
            pytest.raises(KeyboardInterrupt),
        ):
            runtime.read(
                book,
                checkpoint=checkpoint,
                on_progress=Stopper(3),
                on_notice=lambda message: None,
            )
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(book, checkpoint=checkpoint, on_notice=lambda message: None)
    same_state(memory.state, read(bundle, book).state)


def test_an_interruption_inside_a_chunk_waits_until_it_is_through(
    bundle: Bundle, book: Path, tmp_path: Path
) -> None:
    checkpoint, handler = tmp_path / "c", signal.getsignal(signal.SIGINT)
    with (
        fake_runtime(bundle, backend=Recorder(stop_at=9)) as runtime,
        pytest.raises(KeyboardInterrupt),
    ):
        runtime.read(book, checkpoint=checkpoint)
    assert signal.getsignal(signal.SIGINT) is handler
    notices: list[str] = []
    with fake_runtime(bundle) as runtime:
        runtime.read(book, checkpoint=checkpoint, on_notice=notices.append)
    assert notices == [f"Reading goes on after {64 * 9:,} tokens."]


def test_a_second_interruption_ends_the_chunk_and_its_state(
    bundle: Bundle, book: Path, tmp_path: Path
) -> None:
    checkpoint, handler = tmp_path / "c", signal.getsignal(signal.SIGINT)
    backend = Recorder(stop_at=9, stops=2)
    with fake_runtime(bundle, backend=backend) as runtime, pytest.raises(KeyboardInterrupt):
        runtime.read(book, checkpoint=checkpoint)
    assert len(backend.lengths) == 9
    assert not checkpoint.exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_have_no_interruptions_to_hold_back(bundle: Bundle, book: Path) -> None:
    with fake_runtime(bundle) as runtime, ThreadPoolExecutor(1) as pool:
        memory = pool.submit(runtime.read, book).result()
    same_state(memory.state, read(bundle, book).state)


@pytest.mark.parametrize("ignored", [False, True])
def test_what_is_held_back_is_handled_once(ignored: bool) -> None:
    came: list[int] = []
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN if ignored else lambda number, _: came.append(number)
    )
    try:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            assert came == []
        assert came == ([] if ignored else [signal.SIGINT])
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_a_chunk_without_room_leaves_the_last_checkpoint(
    bundle: Bundle, book: Path, tmp_path: Path, seconds: float
) -> None:
    """Its state was given away; the memory that reading went on from stays as it was."""
    checkpoint, notices = tmp_path / "c", list[str]()
    with fake_runtime(bundle) as runtime:
        before = runtime.read("Something else was read before.\n")
    kept = {name: array.copy() for name, array in before.state.items()}
    with (
        fake_runtime(bundle, backend=Recorder(fail_at=6)) as runtime,
        pytest.raises(BudgetExceeded) as refusal,
    ):
        runtime.read(book, memory=before, checkpoint=checkpoint, checkpoint_seconds=seconds)
    same_state(before.state, kept)
    tells = (
        f"The first 320 tokens of the document are kept in {checkpoint}: reading it again goes on "
        "from there."
        if seconds == 0.0
        else "Nothing of the document is kept: no checkpoint was due yet."
    )
    assert str(refusal.value).startswith(f"The chunk has no room. {tells} It is given back: ")
    assert checkpoint.exists() == (seconds == 0.0)
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(book, memory=before, checkpoint=checkpoint, on_notice=notices.append)
        whole = runtime.read(book, memory=before)
    same_state(memory.state, whole.state)
    assert notices == (["Reading goes on after 320 tokens."] if seconds == 0.0 else [])


def test_without_a_checkpoint_the_refusal_tells_of_none(bundle: Bundle, book: Path) -> None:
    with (
        fake_runtime(bundle, backend=Recorder(fail_at=6)) as runtime,
        pytest.raises(BudgetExceeded, match=r"^The chunk has no room\. It is given back: "),
    ):
        runtime.read(book)


def test_checkpoints_are_written_as_time_goes_by(
    bundle: Bundle, book: Path, tmp_path: Path
) -> None:
    checkpoint, there = tmp_path / "c", list[bool]()
    with fake_runtime(bundle, chunk_tokens=4000) as runtime:
        for seconds in (0.0, 1000.0):
            there.clear()
            runtime.read(
                book,
                checkpoint=checkpoint,
                checkpoint_seconds=seconds,
                on_progress=lambda progress: there.append(checkpoint.exists()),
            )
            assert set(there) == {seconds == 0.0}
            assert not checkpoint.exists()


def not_used(checkpoint: Path, reason: str) -> str:
    return f"The checkpoint {checkpoint} is not used, and reading starts at the beginning. {reason}"


@pytest.mark.parametrize("at", [0, 1000, 30_000])
def test_a_checkpoint_of_another_text(bundle: Bundle, book: Path, tmp_path: Path, at: int) -> None:
    checkpoint, notices = tmp_path / "c", list[str]()
    interrupt(bundle, book, checkpoint, 200)
    changed = TEXT[:at] + "@" + TEXT[at + 1 :]
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(changed, checkpoint=checkpoint, on_notice=notices.append)
    same_state(memory.state, read(bundle, changed).state)
    assert notices == [not_used(checkpoint, "It is of another text.")]
    assert not checkpoint.exists()


def test_a_text_that_grew_or_changed_later_goes_on(
    bundle: Bundle, book: Path, tmp_path: Path
) -> None:
    checkpoint, notices = tmp_path / "c", list[str]()
    interrupt(bundle, book, checkpoint, 100)
    changed = TEXT[:40_000] + "# changed\n" + TEXT[40_000:] * 2
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(changed, checkpoint=checkpoint, on_notice=notices.append)
    same_state(memory.state, read(bundle, changed).state)
    assert notices == ["Reading goes on after 6,400 tokens."]


def test_a_stream_goes_on_or_is_refused(bundle: Bundle, book: Path, tmp_path: Path) -> None:
    checkpoint, notices = tmp_path / "c", list[str]()
    interrupt(bundle, book, checkpoint, 50)
    with fake_runtime(bundle) as runtime:
        with pytest.raises(BadMemory) as refusal:
            runtime.read(iter(["x" + TEXT]), checkpoint=checkpoint, on_notice=notices.append)
        assert str(refusal.value) == (
            f"{not_used(checkpoint, 'It is of another text.')} But stream can be read only once, "
            "and its start is gone. Remove the checkpoint, and give the text again."
        )
        memory = runtime.read(iter([TEXT]), checkpoint=checkpoint, on_notice=notices.append)
    same_state(memory.state, read(bundle, book).state)
    assert notices == ["Reading goes on after 3,200 tokens."]


def test_a_checkpoint_of_another_model(bundle: Bundle, book: Path, tmp_path: Path) -> None:
    checkpoint, notices = tmp_path / "c", list[str]()
    interrupt(bundle, book, checkpoint, 2)
    files = {**bundle.manifest.files, WEIGHTS: "1" * 64}
    other = fake_bundle(tmp_path, files=files)
    with fake_runtime(other) as runtime:
        runtime.read(book, checkpoint=checkpoint, on_notice=notices.append)
    one = bundle.manifest.model_fingerprint()[:12]
    two = other.manifest.model_fingerprint()[:12]
    assert notices == [
        not_used(
            checkpoint,
            f"It belongs to the fake model {one}, and this bundle is the fake model {two}. A "
            "memory goes on only with the model that wrote it. Load that model's bundle, or read "
            "the document again with this one.",
        )
    ]


def test_a_checkpoint_of_another_memory(bundle: Bundle, book: Path, tmp_path: Path) -> None:
    checkpoint, notices = tmp_path / "c", list[str]()
    interrupt(bundle, book, checkpoint, 2)
    with fake_runtime(bundle) as runtime:
        before = runtime.read("Something else was read before.")
        runtime.read(book, memory=before, checkpoint=checkpoint, on_notice=notices.append)
    assert notices == [not_used(checkpoint, "It goes on from another memory.")]


def test_a_notice_is_a_warning_by_default(bundle: Bundle, book: Path, tmp_path: Path) -> None:
    interrupt(bundle, book, tmp_path / "c", 2)
    with fake_runtime(bundle) as runtime, pytest.warns(UserWarning, match="goes on after 128"):
        runtime.read(book, checkpoint=tmp_path / "c")


def test_a_memory_is_never_taken_for_a_checkpoint(
    bundle: Bundle, book: Path, tmp_path: Path
) -> None:
    path = tmp_path / "precious.span"
    with fake_runtime(bundle) as runtime:
        runtime.read(book).save(path)
        with pytest.raises(BadInput) as refusal:
            runtime.read(book, checkpoint=path)
        assert str(refusal.value) == (
            f"{path} was named for checkpoints, and it is a memory; it would be lost. Name "
            "another file for checkpoints."
        )
        with pytest.raises(BadMemory, match="is no memory: "):
            runtime.read(book, checkpoint=book)
        assert runtime.open(path).tokens == len(TOKENS)


def test_a_checkpoint_is_no_memory(bundle: Bundle, book: Path, tmp_path: Path) -> None:
    interrupt(bundle, book, tmp_path / "c", 2)
    with fake_runtime(bundle) as runtime, pytest.raises(BadMemory) as refusal:
        runtime.open(tmp_path / "c")
    assert str(refusal.value) == (
        f"{tmp_path / 'c'} is no memory but the checkpoint of a reading that was interrupted. "
        "Read the same document again to finish it: it goes on from there."
    )
    assert describe(tmp_path / "c")["tokens"] > 0


def test_over_the_budget_stops_and_keeps_the_state(
    bundle: Bundle, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = iter([2**29, 2**29, 2**30 + 2**20, 2**29])
    with monkeypatch.context() as patch:
        patch.setattr(
            measured, "memory_now", lambda device: Reading(bytes=next(held), source="a test")
        )
        with (
            fake_runtime(bundle, budget_bytes=2**30) as runtime,
            pytest.raises(BudgetExceeded) as refusal,
        ):
            runtime.read(book, checkpoint=tmp_path / "c")
    assert str(refusal.value) == (
        "The process holds 1.0 GiB (a test), and the budget is 1.0 GiB. The first 192 tokens of "
        f"the document are kept in {tmp_path / 'c'}: reading it again goes on from there. It is "
        "given back: the process holds 512.0 MiB of 1.0 GiB now (a test). Read in smaller chunks "
        "with chunk_tokens below 64, or give a larger budget."
    )
    notices: list[str] = []
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(book, checkpoint=tmp_path / "c", on_notice=notices.append)
    same_state(memory.state, read(bundle, book).state)
    assert notices == ["Reading goes on after 192 tokens."]


def test_what_others_hold_on_a_shared_count_is_no_reason_to_stop(
    bundle: Bundle, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(bytes=2**40, source="all processes", shared=True)
    monkeypatch.setattr(measured, "memory_now", lambda device: reading)
    with fake_runtime(bundle, budget_bytes=2**30) as runtime:
        assert runtime.read(book).tokens == len(TOKENS)


def test_a_document_that_turns_out_bad_keeps_what_was_read(
    bundle: Bundle, book: Path, tmp_path: Path
) -> None:
    good = TEXT.encode() * 2
    book.write_bytes(good + b"\xff")
    with fake_runtime(bundle) as runtime, pytest.raises(BadDocument, match="is not UTF-8 text"):
        runtime.read(book, checkpoint=tmp_path / "c")
    book.write_bytes(good)
    notices: list[str] = []
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(book, checkpoint=tmp_path / "c", on_notice=notices.append)
    same_state(memory.state, read(bundle, book).state)
    assert notices[0].startswith("Reading goes on after ")


def test_reading_on_from_a_memory(bundle: Bundle, tmp_path: Path) -> None:
    cut = TEXT.index(" the ", 20_000)
    with fake_runtime(bundle) as runtime:
        first = runtime.read(TEXT[:cut])
        first.save(tmp_path / "half.span")
        kept = {name: array.copy() for name, array in first.state.items()}
        both = runtime.read(TEXT[cut:], memory=runtime.open(tmp_path / "half.span"))
        again = runtime.read(TEXT[cut:], memory=first)
    whole = read(bundle, TEXT)
    same_state(both.state, whole.state)
    same_state(again.state, whole.state)
    same_state(first.state, kept)
    np.testing.assert_array_equal(both.last_logits, whole.last_logits)
    assert both.tokens == whole.tokens
    assert [document.tokens for document in both.documents] == [
        first.tokens,
        whole.tokens - first.tokens,
    ]
