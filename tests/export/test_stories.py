"""A trained Llama, karpathy's stories260K, exported: it tells the story that it is known for."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from longspan.bundle import Bundle, open_bundle
from longspan.engines import Engine
from longspan.errors import DoesNotFit
from longspan.export import ExportReport, export_bundle
from longspan.runtime.backends import open_backend
from longspan.runtime.plan import make_plan, require_fit
from longspan.runtime.runtime import load

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from plain_onnxruntime import Model

# The answer of transformers 5.23, greedily from the token that begins a text.
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
)
BEGIN, TOKENS, CAPACITY = 1, 40, 64
KEY_HEADS, HEAD_DIM, LAYERS = 4, 8, 5


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export_bundle(checkpoint(), tmp_path_factory.mktemp("stories") / "bundle")


@pytest.fixture(scope="module")
def bundle(report: ExportReport) -> Bundle:
    return open_bundle(report.bundle)


def checkpoint() -> Path:
    root = os.environ.get("LONGSPAN_DATA")
    folder = Path(root or "") / "checkpoints/stories260K"
    if root is None or not folder.is_dir():
        pytest.skip("LONGSPAN_DATA names no folder with checkpoints/stories260K")
    return folder


def text(tokens: list[int]) -> str:
    """The text of token ids of a SentencePiece vocabulary."""
    pieces = json.loads((checkpoint() / "vocab_from_gguf.json").read_text())["tokens"]
    return "".join(pieces[token] for token in tokens).replace("▁", " ").strip()


def test_the_bundle_is_verified(report: ExportReport) -> None:
    assert [check.passed for check in report.checks] == [True] * 5
    assert report.family == "llama"
    assert report.state_bytes == LAYERS * 8
    assert report.cache_entry_bytes == LAYERS * 2 * KEY_HEADS * HEAD_DIM * 4
    assert "1.2 KiB of cache a token" in report.text()


@pytest.mark.parametrize(
    "engine",
    [
        "onnx-cpu",
        "torch-cpu",
        pytest.param("onnx-cuda", marks=pytest.mark.gpu),
        pytest.param("torch-cuda", marks=pytest.mark.gpu),
    ],
)
def test_it_tells_its_story(bundle: Bundle, engine: Engine) -> None:
    backend = open_backend(bundle, engine=engine, memory_limit_bytes=None, capacity=CAPACITY)
    state, tokens = backend.new_state(), [BEGIN]
    for _ in range(TOKENS):
        logits, state = backend.forward(np.array(tokens[-1:]), state, keep=[-1])
        tokens.append(int(logits[-1].argmax()))
    assert text(tokens[1:]).startswith(STORY)


def test_it_tells_its_story_in_plain_onnxruntime(bundle: Bundle) -> None:
    """The example's loop, in caches of as many entries as tokens, and a runtime's logits."""
    model, tokens = Model(bundle.path), [BEGIN]
    state, rows = model.new_state(TOKENS), []
    for _ in range(TOKENS):
        logits, state = model.forward(tokens[-1:], state, keep=[-1])
        rows.append(logits[-1])
        tokens.append(int(logits[-1].argmax()))
    assert text(tokens[1:]).startswith(STORY)
    assert model.entries(tokens[:TOKENS]) == TOKENS
    with load(bundle, budget="1GiB", tokens=TOKENS, device="cpu", backend="onnx") as runtime:
        np.testing.assert_allclose(np.array(rows), runtime.logits(tokens[:TOKENS]), atol=2e-5)


def test_a_runtime_reads_in_chunks_and_steps(bundle: Bundle) -> None:
    """Chunks of 3 through the runtime give the logits of one pass."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 512, 50)
    with load(
        bundle, budget="1GiB", tokens=50, device="cpu", backend="onnx", chunk_tokens=3
    ) as runtime:
        memory = runtime.read_tokens([tokens])
        expected = runtime.logits(tokens)[-1]
        np.testing.assert_allclose(memory.last_logits, expected, atol=2e-5)
        assert memory.nbytes == LAYERS * (8 + 50 * 2 * KEY_HEADS * HEAD_DIM * 4) + 512 * 4


def test_a_document_that_is_too_long_is_refused_with_the_arithmetic(bundle: Bundle) -> None:
    plan = make_plan(
        bundle.manifest, engine="onnx-cpu", budget_bytes=2**28, baseline_bytes=0, tokens=2**20
    )
    with pytest.raises(DoesNotFit) as refusal:
        require_fit(plan)
    assert (
        "A copy of the cache has 1,048,576 entries for the document and 1,024 for a question and "
        f"its answer: 1,049,600 x 1,280 bytes = 1.3 GiB. This budget holds documents of up to "
        f"{plan.longest_tokens:,} tokens."
    ) in str(refusal.value)
    assert plan.longest_tokens is not None
    longest = make_plan(
        bundle.manifest,
        engine="onnx-cpu",
        budget_bytes=2**28,
        baseline_bytes=0,
        tokens=plan.longest_tokens,
    )
    assert longest.fits
