"""A bundle run by the example's loop over ONNX Runtime says what a `Runtime` says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_checkpoints import VOCABULARY, write_letters, write_llama, write_mamba

import longspan
from longspan.bundle import open_bundle
from longspan.export import bundle_writer, export_bundle
from longspan.models.config import CacheUse

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import plain_onnxruntime as plain

DOCUMENT = 'abc def. gh "ij!" klm no... pq rst. ' * 20
QUESTION = " fa ce. bed"
CASES: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "mamba": (write_mamba, {}),
    "ac": (partial(write_llama, num_hidden_layers=1), {"anchors": "ac"}),
    "every": (partial(write_llama, num_hidden_layers=1), {"anchors": "every=16"}),
}


@pytest.fixture(scope="module", params=CASES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without verification, which other tests have."""
    write, options = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    write(folder / "checkpoint")
    write_letters(folder / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_writer, "verify_bundle", lambda *args, **kwargs: ())
        export_bundle(
            folder / "checkpoint",
            folder / request.param,
            prompt_template="{question}",
            stop=("zz",),
            **options,
        )
    return folder / request.param


def test_the_answer_is_that_of_a_runtime(bundle: Path, tmp_path: Path) -> None:
    found = plain.ask(bundle, DOCUMENT, QUESTION, max_tokens=12)
    with longspan.load(bundle, budget="1GiB", tokens=1000, device="cpu", backend="onnx") as runtime:
        path = tmp_path / "text.txt"
        path.write_text(DOCUMENT, encoding="utf-8")
        memory = runtime.read(path)
        assert memory.tokens > plain.CHUNK
        assert found == runtime.ask(memory, QUESTION, max_tokens=12).read().strip()
    assert found


def test_caches_have_room_for_the_text_and_no_more(bundle: Path) -> None:
    """The logits of one pass, in as many entries as a plan counts."""
    model, ids = plain.Model(bundle), np.random.default_rng(5).integers(0, VOCABULARY, 300).tolist()
    capacity = model.entries(ids)
    assert capacity == CacheUse.of(open_bundle(bundle).manifest.config).after(np.array(ids)).entries
    state, rows = model.new_state(capacity), []
    for start in range(0, 300, 90):
        part = ids[start : start + 90]
        logits, state = model.forward(part, state, keep=list(range(len(part))))
        rows.append(logits)
    with longspan.load(bundle, budget="1GiB", tokens=300, device="cpu", backend="onnx") as runtime:
        expected = runtime.logits(ids)
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=2e-5)


def test_weights_that_numpy_does_not_know_are_refused(tmp_path: Path) -> None:
    (tmp_path / "longspan.json").write_text('{"dtype": "bfloat16"}', encoding="utf-8")
    with pytest.raises(SystemExit) as refusal:
        plain.Model(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path} has weights of bfloat16, and so has its state, which numpy does not know. "
        "Export the checkpoint with --weights float32."
    )
