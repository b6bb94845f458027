"""Models whose tokens are bytes: from the checkpoint to a `.span` on another backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_checkpoints import Exported, write_hf, write_mambabyte, write_tokenizer

from longspan.bundle import TOKENIZER, open_bundle
from longspan.errors import BadInput
from longspan.export.tokenizer import choose_tokenizer
from longspan.info import describe
from longspan.models.families import open_checkpoint
from longspan.runtime.runtime import load
from longspan.runtime.verify import verify_bundle

TEXT = "Zoë saw 東京 😀, and it rained on the quay all day.\n" * 30


def test_the_bundle_says_bytes_and_has_no_file(exported: Exported) -> None:
    bundle = open_bundle(exported("mambabyte", "float32").bundle)
    assert bundle.manifest.tokenizer == "bytes"
    assert (bundle.manifest.config.norm, bundle.manifest.config.tied) == ("layer", False)
    assert not (bundle.path / TOKENIZER).exists()
    assert describe(bundle.path)["tokenizer"]


def test_read_on_one_backend_and_asked_on_another(exported: Exported, tmp_path: Path) -> None:
    bundle = exported("mambabyte", "float32").bundle
    at = TEXT.index("quay", 700)
    with load(bundle, device="cpu", backend="torch", chunk_tokens=37) as runtime:
        whole = runtime.read(TEXT)
        runtime.read(TEXT[:at]).save(tmp_path / "half.span")
        expected = runtime.ask(whole, "Who?", stop=[], max_tokens=24).read()
        logits = runtime.logits(np.frombuffer(TEXT.encode(), np.uint8))
    with load(bundle, device="cpu", backend="onnx") as runtime:
        both = runtime.read(TEXT[at:], memory=runtime.open(tmp_path / "half.span"))
        assert both.tokens == len(TEXT.encode()) == both.ranges[-1].end_byte
        assert [one.end_byte for one in both.ranges] == [len(TEXT[:at].encode()), both.tokens]
        scale = np.abs(logits).max()
        np.testing.assert_allclose(both.last_logits / scale, logits[-1] / scale, atol=1e-4)
        assert runtime.ask(both, "Who?", stop=[], max_tokens=24).read() == expected
    assert len(expected.encode(errors="replace")) >= 8


@pytest.mark.gpu
@pytest.mark.onnx_cuda
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_engines_agree_on_cuda(exported: Exported, dtype: str) -> None:
    bundle = open_bundle(exported("mambabyte", dtype).bundle)
    checks = verify_bundle(bundle, device="cuda")
    assert [(check.skipped, check.passed) for check in checks] == [(None, True)] * 3


def test_which_tokenizer_is_chosen(tmp_path: Path) -> None:
    write_mambabyte(tmp_path)
    assert choose_tokenizer(open_checkpoint(tmp_path), None) == "bytes"
    assert describe(tmp_path)["tokenizer"]
    own = write_tokenizer(tmp_path / TOKENIZER)
    assert choose_tokenizer(open_checkpoint(tmp_path), None) == own
    assert choose_tokenizer(open_checkpoint(tmp_path), "bytes") == "bytes"
    named = write_tokenizer(tmp_path / "bytes")
    assert choose_tokenizer(open_checkpoint(tmp_path), named) == named


def test_bytes_for_another_family(tmp_path: Path) -> None:
    write_hf(tmp_path)
    assert choose_tokenizer(open_checkpoint(tmp_path), None) is None
    with pytest.raises(BadInput) as refusal:
        choose_tokenizer(open_checkpoint(tmp_path), "bytes")
    assert str(refusal.value) == (
        "tokenizer='bytes' was asked for, and the model's vocabulary has 24 tokens. A byte has 256 "
        "values, and each must have its token. Give the model's own with tokenizer=FILE "
        "(--tokenizer)."
    )
