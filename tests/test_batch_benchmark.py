"""benchmarks/batch.py: arithmetic, and small models of several sequences run through it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import batch
import batch_steps
import random_bundle
from batch_steps import Batch, BatchOptions, BatchRun, measure_batch, random_decoder, state_bytes
from model_runs import Steps

from longspan.errors import DoesNotFit

SAMBA = random_bundle.samba(32, 64, 2, 1, 1, 64)
LLAMA = random_bundle.llama(32, 64, 2, 1, 1, 64)
OPTIONS = BatchOptions(device="cpu", batch=3, contexts=(0, 40), steps=2)


def steps_at(context: int, ms: float, state: int) -> Steps:
    return Steps(context=context, median_ms=ms, least_ms=ms, most_ms=ms, state_bytes=state)


RUN = BatchRun(
    shape="first",
    batch=16,
    weight_bytes=1000,
    capacity=70,
    peak_bytes=4096,
    steps=(steps_at(0, 1.0, 200), steps_at(64, 2.0, 200)),
)
SLOWER = replace(RUN, shape="second", steps=(steps_at(0, 2.0, 0), steps_at(64, 10.0, 2800)))


def run_of(runs: list[BatchRun], generate: int | None) -> dict[str, Any]:
    packages = ("python", "torch", "triton", "onnxruntime-gpu", "onnxruntime")
    return {
        "command": "python benchmarks/batch.py",
        "device": "a card",
        "versions": dict.fromkeys(packages, "1"),
        "weights": "bfloat16",
        "batch": 16,
        "steps": 8,
        "copy_bytes_per_second": 1e6,
        "generate": generate,
        "runs": [asdict(run) for run in runs],
    }


def test_two_shapes_are_compared_beside_the_paper() -> None:
    text = batch.comparison([RUN, SLOWER], 64)[0]
    assert "64 tokens in each of 16 sequences are generated 4.00 times as fast" in text
    assert "(paper: 3.64x with 16 sequences on an A100)" in text
    assert "1.50 and 6.00 ms a step on average" in text
    # (1,000 + 1,400 on average) / (1,000 + 200)
    assert "By bytes of weights and states the two are 2.00 apart." in text


def test_the_tables() -> None:
    text = batch.text_of(run_of([RUN], None), [RUN])
    assert "times as fast" not in text
    assert "| first | 1000 B | 64 | 200 B | 4.0 KiB |" in text
    # 1,200 bytes at 1 MB/s are 1.2 ms, of 2; 16 tokens a step.
    assert "| first | 64 | 2.000 | 2.000 to 2.000 | 8,000 | 1.200 | 60% |" in text


def test_a_program_reads_its_own_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, written = tmp_path / "run.json", tmp_path / "measurements.md"
    saved.write_text(json.dumps(run_of([RUN, SLOWER], 64)))
    monkeypatch.setattr(sys, "argv", ["batch.py", "--from", str(saved), "--write", str(written)])
    batch.main()
    assert capsys.readouterr().out.strip() in written.read_text()


@pytest.mark.parametrize("config", [SAMBA, LLAMA], ids=lambda config: config.family)
def test_a_batch_is_measured(
    config: random_bundle.ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_steps, "SHAPES", {"tiny": config})
    run = measure_batch("tiny", "bfloat16", OPTIONS)
    decoder = random_decoder(config, "bfloat16", "cpu")
    assert run.weight_bytes == sum(each.nbytes for each in decoder.parameters())
    assert run.capacity == 44
    assert [each.context for each in run.steps] == [0, 40]
    for each in run.steps:
        assert 0 < each.least_ms <= each.median_ms <= each.most_ms
        state = decoder.new_state(3, capacity=each.context)
        assert each.state_bytes == sum(tensor.nbytes for tensor in state.values())


@torch.inference_mode()
def test_a_batch_goes_on_from_where_it_is_put() -> None:
    batch_of = Batch(random_decoder(LLAMA, "float32", "cpu"), 2, capacity=12)
    batch_of.begin_at_(9)
    held = {name: tensor.clone() for name, tensor in batch_of.state.items()}
    batch_of.advance_no_sync_()
    assert batch_of.state["layers.0.position"].item() == 10
    keys = batch_of.state["layers.0.k"]
    assert torch.equal(keys[:, :9], held["layers.0.k"][:, :9])
    assert not torch.equal(keys[:, 9], held["layers.0.k"][:, 9])
    assert batch_of.tokens.shape == (2, 1)
    assert int(batch_of.tokens.max()) < LLAMA.vocab_size


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_steps, "SHAPES", {"tiny": LLAMA})
    monkeypatch.setattr(batch_steps, "free_bytes", lambda device: 1024)
    needed = random_bundle.empty_decoder(LLAMA).state_dict().values()
    assert sum(each.nbytes for each in needed) > 1024
    with pytest.raises(DoesNotFit, match=r"3 sequences of tiny after 40 tokens take .*smaller --b"):
        measure_batch("tiny", "float32", OPTIONS)
    assert state_bytes(LLAMA, "float32", 3, 40) == 3 * 40 * 2 * 16 * 4 + 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "samba"], "--shape samba is unknown; there are samba-421m, samba-1.7b, "),
        (["--batch", "0"], "--batch 0, --steps 64: 1 is the least"),
        (["--generate", "64K"], "--generate compares two shapes; --shape names 1"),
        (["--generate", "128K"], "generating 131,072 tokens needs steps from 0 to there: [0, 2048"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["batch.py", *arguments])
    with pytest.raises(SystemExit):
        batch.main()
    assert message in " ".join(capsys.readouterr().err.split())
