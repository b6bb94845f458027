"""benchmarks/memory.py: its tables, its own JSON, and small models of random weights in it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import memory
import random_bundle
from streaming_runs import StreamedRun, run_streamed, streaming_rows

from longspan.runtime.runtime import load

TINY = random_bundle.samba(32, 64, 2, 1, 1, 64)
VERSIONS = dict.fromkeys(("python", "torch", "triton", "onnxruntime-gpu", "onnxruntime"), "1")
RESIDENT = StreamedRun(
    budget_bytes=12 * 2**30,
    planned_bytes=6 * 2**30,
    peak_bytes=6 * 2**30,
    layers=64,
    streamed_layers=0,
    pinned_bytes=0,
    tokens=1000,
    chunk_tokens=500,
    read_seconds=2.0,
    predicted_seconds=None,
    step_ms=3.0,
)
STREAMED = replace(
    RESIDENT,
    budget_bytes=2 * 2**30,
    planned_bytes=2**30 * 103 // 100,
    peak_bytes=2**30,
    streamed_layers=54,
    pinned_bytes=2**30,
    read_seconds=2.5,
    predicted_seconds=2.25,
    logits_off=0.001,
)


def test_readings_are_set_beside_the_one_with_all_on_the_device() -> None:
    first, second = streaming_rows([RESIDENT, STREAMED])
    assert first[:7] == ("12,288", "0 of 64", "500", "2.000", "-", "500", "100%")
    assert second == (
        "2,048", "54 of 64", "500", "2.500", "2.250", "400", "80%", "1,024.0", "1,054.7", "+3.0%",
        "1,024", "3.00", "1.0e-03",
    )  # fmt: skip


def printed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", ["memory.py", *arguments])
    memory.main()
    return capsys.readouterr().out.strip()


def test_a_run_elsewhere_is_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, page = tmp_path / "run.json", tmp_path / "measurements.md"
    run: dict[str, Any] = {
        "command": "python benchmarks/memory.py", "model": "a model", "device": "a card",
        "versions": VERSIONS, "streaming": [asdict(RESIDENT), asdict(STREAMED)],
    }  # fmt: skip
    saved.write_text(json.dumps(run))
    text = printed(["--from", str(saved), "--write", str(page)], monkeypatch, capsys)
    assert text in page.read_text()
    assert text.startswith("### Weights that stream: a model on a card\n")
    again = printed(["--from", str(saved), "--json"], monkeypatch, capsys)
    assert json.loads(again) == run


def test_a_measurement_is_written_and_drawn_from_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    saved, drawn = tmp_path / "run.json", tmp_path / "memory.png"
    asked = ["--budget", "256MiB", "--tokens", "40", "--device", "cpu", "--json"]
    saved.write_text(printed(asked, monkeypatch, capsys))
    text = printed(["--from", str(saved), "--plot", str(drawn)], monkeypatch, capsys)
    assert text.startswith("### Memory and speed: The built-in model on ")
    assert "| 256 | 40 | 48 |" in text
    assert drawn.stat().st_size > 0


def test_a_small_model_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_bundle, "SHAPES", {"tiny": TINY})
    with random_bundle.random_bundle("tiny", "float32") as bundle:
        run, logits = run_streamed(bundle, "2GiB", 100, "cpu")
    assert (run.layers, run.streamed_layers, run.tokens) == (4, 0, 100)
    assert run.read_seconds > 0
    assert run.step_ms > 0
    assert 0 < run.peak_bytes <= run.budget_bytes
    assert logits.shape == (64,)


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_random_weights_of_every_kind_stay_finite(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_bundle, "SHAPES", {"tiny": TINY})
    with (
        random_bundle.random_bundle("tiny", weights) as bundle,
        load(bundle, budget="2GiB", device="cpu", backend="torch") as runtime,
    ):
        manifest = runtime.bundle.manifest
        logits = runtime.read_tokens([np.arange(40)]).last_logits
    # Numbers, whatever they are stored in.
    assert manifest.parameters == 27_488
    assert bool(np.isfinite(logits).all())
    assert 0.1 < float(logits.std()) < 10
