"""A runtime as a whole: plan, read, save, open, logits, what was measured."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import (
    GIB,
    VOCABULARY,
    Recorder,
    cached_bundle,
    fake_bundle,
    fake_runtime,
    same_state,
)
from tokenizers_ import SOURCE, byte_level

from longspan.bundle import Bundle, ChunkBytes
from longspan.errors import BadDocument, BadInput, DoesNotFit
from longspan.runtime import plan_arena
from longspan.runtime import runtime as runtime_module
from longspan.runtime.backends import Backend
from longspan.runtime.backends.fake import FakeBackend
from longspan.runtime.runtime import load, plan_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path, chunk_bytes={"onnx-cpu": (ChunkBytes(per_token=2**10),)})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeBackend]:
    """`load` gets a `FakeBackend`; which ones it got."""
    backends: list[FakeBackend] = []

    def open_fake(bundle: Bundle, **options: object) -> Backend:
        assert options["engine"] == "onnx-cpu"
        backends.append(FakeBackend(bundle.manifest.config.vocab_size))
        return backends[-1]

    monkeypatch.setattr(runtime_module, "open_backend", open_fake)
    return backends


def test_load_reads_and_answers(bundle: Bundle, opened: list[FakeBackend]) -> None:
    with load(bundle, budget="8GiB", device="cpu", backend="onnx") as runtime:
        memory = runtime.read(SOURCE)
        assert runtime.ask(memory, "import argp", max_tokens=3).read()
        assert runtime.engine == "onnx-cpu"
        assert runtime.plan.budget_bytes == 8 * GIB
        assert runtime.plan.fits
        measured = runtime.measured
        assert measured.peak_bytes > 2**20
        assert measured.peak_source
        assert measured.planned_bytes == runtime.plan.total_bytes
        assert measured.budget_bytes == 8 * GIB
        assert measured.prefill_tokens == memory.tokens
        assert measured.prefill_tokens_per_second > 0
        assert measured.decode_tokens == 2
        assert measured.decode_tokens_per_second > 0
        assert not opened[0].closed
    assert opened[0].closed


def test_nothing_is_loaded_when_it_does_not_fit(bundle: Bundle, opened: list[FakeBackend]) -> None:
    with pytest.raises(DoesNotFit, match="The smallest budget that would do is "):
        load(bundle, budget="1MiB", device="cpu", backend="onnx")
    assert opened == []


def test_a_draft_model_is_loaded_under_the_same_budget(
    bundle: Bundle, opened: list[FakeBackend]
) -> None:
    options: dict[str, Any] = {"budget": "8GiB", "device": "cpu", "backend": "onnx"}
    alone = plan_bundle(bundle, **options)
    both = plan_bundle(bundle, draft=bundle, **options)
    names = [item.name for item in both.items]
    assert names[1:3] == [f"draft model {bundle.path.name}", "logits of drafted tokens"]
    assert [names[0], *names[3:]] == [item.name for item in alone.items]
    # A chunk of 64 tokens, and the arena around it; 33 rows of 700 float32 logits, twice.
    chunk = 64 * 2**10 * 180 // 100 + plan_arena.ARENA_BYTES
    fixed = sum(item.bytes for item in alone.items[1:-2])
    assert [item.bytes for item in both.items[1:3]] == [fixed + chunk, 33 * 700 * 8]
    with load(bundle, draft=bundle, **options) as runtime:
        assert runtime.draft is not None
        assert runtime.draft.plan.chunk_tokens == 64
        assert [item.name for item in runtime.plan.items] == names
        memory = runtime.read(SOURCE)
        plain, drafted = (
            runtime.ask(memory, "import argp", max_tokens=20, draft_memory=draft_memory)
            for draft_memory in (None, memory)
        )
        assert plain.read() == drafted.read()
        assert drafted.draft is not None
        assert drafted.draft.acceptance_rate == 1
        assert drafted.draft.forwards < 20 / 4
        assert runtime.measured.decode_tokens == 2 * 19
        assert len(opened) == 2
        assert not any(backend.closed for backend in opened)
    assert all(backend.closed for backend in opened)


def test_two_models_that_do_not_fit_together(bundle: Bundle, opened: list[FakeBackend]) -> None:
    """Refused with the arithmetic, where one of them alone would fit; nothing is loaded."""
    options: dict[str, Any] = {"device": "cpu", "backend": "onnx", "chunk_tokens": 16}
    alone = plan_bundle(bundle, budget="8GiB", **options)
    budget = alone.total_bytes + 2**20
    assert plan_bundle(bundle, budget=budget + 2**20, **options).fits
    with pytest.raises(DoesNotFit) as refusal:
        load(bundle, budget=budget, draft=bundle, **options)
    assert f"draft model {bundle.path.name} " in str(refusal.value)
    assert opened == []


def test_a_draft_model_whose_state_grows_is_refused(
    bundle: Bundle, opened: list[FakeBackend], tmp_path: Path
) -> None:
    growing = cached_bundle(tmp_path)
    for act in (load, plan_bundle):
        with pytest.raises(BadInput) as refusal:
            act(bundle, draft=growing, budget="8GiB", device="cpu", backend="onnx")
        assert str(refusal.value) == (
            f"{tmp_path} was asked for as a draft model, and its state grows with what it reads. A "
            "draft model's state must have a fixed size. Choose a bundle without attention to the "
            "whole text."
        )
    assert opened == []


@pytest.mark.parametrize(("asked", "got"), [(100, 100), (None, 256)])
def test_chunk_tokens(
    bundle: Bundle, opened: list[FakeBackend], asked: int | None, got: int
) -> None:
    options = {"budget": "8GiB", "device": "cpu", "backend": "onnx", "chunk_tokens": asked}
    with load(bundle, **options) as runtime:  # type: ignore[arg-type]
        assert runtime.plan.chunk_tokens == got
    assert plan_bundle(bundle, **options).chunk_tokens == got  # type: ignore[arg-type]


def test_planning_opens_nothing(bundle: Bundle, opened: list[FakeBackend]) -> None:
    plan = plan_bundle(bundle, budget="8GiB", tokens=50, device="cpu", backend="onnx")
    assert plan.chunk_tokens <= 64
    assert opened == []
    assert plan_bundle(bundle, device="cpu", backend="onnx").budget_bytes > 2**26


def test_a_budget_that_is_no_size(bundle: Bundle) -> None:
    with pytest.raises(BadInput) as refusal:
        load(bundle, budget="much", device="cpu", backend="onnx")
    assert str(refusal.value) == (
        "'much' is not a size. Write it like 512MiB, 2GB, 1.5GiB or 1048576."
    )


def test_saved_in_the_middle_and_opened_elsewhere(bundle: Bundle, tmp_path: Path) -> None:
    at = SOURCE.index(" the ", 50_000)
    with fake_runtime(bundle) as runtime:
        whole = runtime.read(SOURCE)
        expected = runtime.ask(whole, "def add_", max_tokens=20).read()
        runtime.read(SOURCE[:at]).save(tmp_path / "half.span")
    with fake_runtime(bundle, chunk_tokens=77) as runtime:
        both = runtime.read(SOURCE[at:], memory=runtime.open(tmp_path / "half.span"))
        assert runtime.ask(both, "def add_", max_tokens=20).read() == expected
    same_state(both.state, whole.state)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64])
def test_logits_of_every_position(bundle: Bundle, chunk_tokens: int) -> None:
    tokens = [5, 6, 5, 7, 5, 6, 6, 9] * 5
    with fake_runtime(bundle, chunk_tokens=chunk_tokens) as runtime:
        logits = runtime.logits(tokens)
    whole = FakeBackend(VOCABULARY)
    expected, _ = whole.forward(np.array(tokens), whole.new_state(), keep=range(40))
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "There are no tokens to compute logits for. Give at least one id."),
        (
            [1, 700],
            (
                "Token 700 is not in the model's vocabulary: ids go from 0 to 699. Check that the "
                "tokenizer is the model's own."
            ),
        ),
        (
            [-1],
            (
                "Token -1 is not in the model's vocabulary: ids go from 0 to 699. Check that the "
                "tokenizer is the model's own."
            ),
        ),
        (
            [0.5],
            "Tokens must be whole numbers in one row; they are float64 [1]. Give a list of ids.",
        ),
        (
            [[1], [2]],
            "Tokens must be whole numbers in one row; they are int64 [2, 1]. Give a list of ids.",
        ),
    ],
)
def test_tokens_that_cannot_be(bundle: Bundle, tokens: list[int], message: str) -> None:
    with fake_runtime(bundle) as runtime, pytest.raises(BadInput) as refusal:
        runtime.logits(tokens)
    assert str(refusal.value) == message


def test_reading_tokens(bundle: Bundle) -> None:
    tokens = np.array(byte_level().encode(SOURCE).ids)
    with fake_runtime(bundle) as runtime:
        read = runtime.read_tokens(np.array_split(tokens, 9))
        same_state(read.state, runtime.read(SOURCE).state)
        assert read.tokens == len(tokens)
        assert read.documents[0].name == "tokens"
        assert read.documents[0].sha256 == hashlib.sha256(tokens.tobytes()).hexdigest()
        on = runtime.read_tokens([tokens[5:]], memory=runtime.read_tokens([tokens[:5]]))
        same_state(on.state, read.state)
        with pytest.raises(BadInput, match="Token 700 is not in the model's vocabulary"):
            runtime.read_tokens([np.array([1]), np.array([700])])
        with pytest.raises(BadDocument, match="The document has no tokens"):
            runtime.read_tokens([])


def test_decode_seconds(bundle: Bundle) -> None:
    backend = Recorder()
    with fake_runtime(bundle, backend=backend) as runtime:
        memory = runtime.read("a b c")
        backend.lengths.clear()
        assert runtime.decode_seconds(memory, 12) > 0
        assert backend.lengths == [1] * 12
        assert runtime.measured.decode_tokens == 12


def test_a_bundle_without_tokenizer_reads_tokens_only(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path, tokenizer=False)
    with fake_runtime(bundle) as runtime:
        memory = runtime.read_tokens([np.array([1, 2, 3])])
        assert runtime.logits([1, 2]).shape == (2, VOCABULARY)
        for act in (lambda: runtime.read("some text"), lambda: runtime.ask(memory, "who?")):
            with pytest.raises(BadInput) as refusal:
                act()
            assert str(refusal.value) == (
                f"The bundle {tmp_path} has no tokenizer, so it can read tokens and no text. Give "
                "it one with: longspan export CHECKPOINT BUNDLE --tokenizer FILE"
            )


def test_read_to(bundle: Bundle, tmp_path: Path) -> None:
    book, path = tmp_path / "book.txt", tmp_path / "book.span"
    book.write_text(SOURCE, encoding="utf-8")
    with fake_runtime(bundle, backend=Recorder(stop_at=9)) as runtime:
        with pytest.raises(KeyboardInterrupt):
            runtime.read_to(path, [book])
        assert sorted(p.name for p in tmp_path.glob("book.span*")) == ["book.span.partial"]
    notices: list[str] = []
    with fake_runtime(bundle) as runtime:
        report = runtime.read_to(path, [book], on_notice=notices.append)
        assert sorted(p.name for p in tmp_path.glob("book.span*")) == ["book.span"]
        assert runtime.open(path).tokens == report.tokens == len(byte_level().encode(SOURCE).ids)
    assert notices == ["Reading goes on after 576 tokens."]
    assert report.chunk_tokens == 64
    assert report.planned_bytes == GIB
    assert "tokens read in" in report.text()
    assert json.dumps(asdict(report) | {"memory": str(report.memory)})


def test_read_to_a_place_that_cannot_be_written_reads_nothing(
    bundle: Bundle, tmp_path: Path
) -> None:
    backend = Recorder()
    with (
        fake_runtime(bundle, backend=backend) as runtime,
        pytest.raises(BadInput, match="cannot be written: there is no folder "),
    ):
        runtime.read_to(tmp_path / "no" / "book.span", "some text")
    assert not backend.lengths
