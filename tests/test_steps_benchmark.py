"""benchmarks/steps.py: small models stepped through it, and its table."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import steps
from steps import StepRun, measure
from timing import Timing

from longspan.models.config import Mamba2Config, ModelConfig
from tests.kernels.devices import DEVICES

LAYER = Mamba2Config(n_heads=4, head_dim=16, n_groups=1, d_state=16, d_conv=4)
CONFIG = ModelConfig(family="mamba2", vocab_size=64, d_model=32, layers=(LAYER, LAYER))


def timing(ms: float) -> Timing:
    return Timing(median_ms=ms, least_ms=ms - 0.5, most_ms=ms + 0.5, rounds=7)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_small_model(device: str, weights: str) -> None:
    run = measure(CONFIG, weights, "cuda" if device == "cuda" else "cpu", 2)
    assert run.weights == weights
    assert run.step.rounds == steps.ROUNDS
    assert 0 < run.step.least_ms <= run.step.median_ms <= run.step.most_ms
    assert (run.graph is not None) == (device == "cuda")


def test_packed_weights_are_smaller() -> None:
    sizes = [measure(CONFIG, each, "cpu", 1).weight_bytes for each in ("bfloat16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_each_is_set_beside_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        StepRun(weights="bfloat16", weight_bytes=2**30, graph=timing(2.0), step=timing(3.0)),
        StepRun(weights="int4", weight_bytes=2**28, graph=timing(1.0), step=timing(2.0)),
    ]
    packages = ("python", "torch", "triton", "onnxruntime-gpu", "onnxruntime")
    run = {
        "command": "python benchmarks/steps.py",
        "shape": "mamba2-2.7b",
        "device": "a card",
        "versions": dict.fromkeys(packages, "1"),
        "replays": 100,
        "runs": [asdict(each) for each in runs],
    }
    source, target = tmp_path / "run.json", tmp_path / "measurements.md"
    source.write_text(json.dumps(run), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["steps.py", "--from", str(source), "--write", str(target)])
    steps.main()
    written = target.read_text(encoding="utf-8")
    assert "### Steps: mamba2-2.7b on a card" in written
    assert written.splitlines()[-2] == (
        "| int4 | 256.0 MiB | 1.000 | 0.500 to 1.500 | 2.00 | 2.000 | 1.500 to 2.500 | 1.50 |"
    )


def test_what_is_not_recorded_has_no_time_of_a_graph() -> None:
    run = StepRun(weights="float32", weight_bytes=4, graph=None, step=timing(1.0))
    assert steps.rows([run]) == [("float32", "4 B", "", "", "", "1.000", "0.500 to 1.500", "1.00")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--weights", "bfloat16,int5"), "--weights int5 is unknown; there are float32,"),
        (("--replays", "0"), "--replays is 0; it must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["steps.py", *arguments])
    with pytest.raises(SystemExit):
        steps.main()
    assert message in capsys.readouterr().err
