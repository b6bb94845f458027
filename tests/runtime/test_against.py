"""The same checkpoint in transformers: what is refused, what is skipped, and a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_checkpoints import write_llama

from longspan.errors import BadInput
from longspan.runtime import against
from longspan.runtime.against import measure_against, measure_transformers

CPU: dict[str, Any] = {"device": "cpu", "backend": "onnx"}


@pytest.mark.parametrize(
    ("program", "checkpoint", "message"),
    [
        (None, "x", "--checkpoint is for another program. Name it: --against transformers"),
        ("vllm", None, "--against is 'vllm'; longspan knows how to run: transformers."),
        (
            "transformers",
            None,
            "transformers reads a checkpoint, no bundle. Name its folder with --checkpoint.",
        ),
        (
            "transformers",
            "nowhere",
            (
                "nowhere has no config.json, so transformers cannot read it. Name the folder of "
                "the checkpoint with --checkpoint."
            ),
        ),
    ],
)
def test_what_is_not_understood(program: str, checkpoint: str | None, message: str) -> None:
    with pytest.raises(BadInput) as refusal:
        measure_against(program, checkpoint, [8], **CPU)
    assert str(refusal.value) == message


def test_no_program_is_no_measurement() -> None:
    assert measure_against(None, None, [8], **CPU) is None


def test_what_is_not_installed_is_skipped_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(against, "find_spec", lambda name: None if name == "transformers" else 1)
    found = measure_transformers(tmp_path, [8], device="cpu")
    assert (found.program, found.runs) == ("transformers", ())
    assert found.skipped == "transformers not installed here"


@pytest.mark.slow
def test_transformers_reads_the_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_llama(tmp_path)
    found = measure_transformers(tmp_path, [50], device="cpu")
    assert found.program.startswith("transformers ")
    assert found.skipped is None
    assert [run.tokens for run in found.runs] == [50]
    for run in found.runs:
        assert run.failed is None
        assert run.peak_bytes is not None
        assert run.peak_bytes > 2**26
        assert run.prefill_tokens_per_second is not None
        assert run.prefill_tokens_per_second > 0
        assert run.decode_tokens_per_second is not None
        assert run.decode_tokens_per_second > 0
    assert found.rows()[0][0] == "50"
