"""benchmarks/end_to_end.py and builtin_ops.py: arithmetic, and a small model run through each."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import builtin_ops
import end_to_end
import random_bundle
from end_to_end import comparison, generation_floor_bytes, generation_seconds, integral, text_of
from model_runs import Options, Reading, Run, Steps, run_bundle

from longspan import builtin_bundle
from longspan.bundle import open_bundle

TINY = random_bundle.samba(32, 64, 2, 1, 1, 64)
OPTIONS = Options(
    device="cpu", budget="2GiB", over_weights=None, tokens=300, contexts=(0, 100), steps=3
)


def steps_at(context: int, ms: float, state_bytes: int = 0) -> Steps:
    return Steps(context=context, median_ms=ms, least_ms=ms, most_ms=ms, state_bytes=state_bytes)


RUN = Run(
    shape="first",
    weight_bytes=1000,
    context_bytes=200,
    budget_bytes=5000,
    planned_bytes=4000,
    peak_bytes=3000,
    tokens=1024,
    chunk_tokens=256,
    read_seconds=2.0,
    steps=(steps_at(0, 1.0, 10), steps_at(64, 2.0, 30)),
)


@pytest.mark.parametrize(("end", "expected"), [(0, 0.0), (50, 75.0), (100, 200.0), (150, 337.5)])
def test_the_integral_of_straight_lines(end: int, expected: float) -> None:
    assert integral([(100, 3.0), (0, 1.0), (200, 2.0)], end) == expected


@pytest.mark.parametrize("points", [[], [(0, 1.0)], [(1, 1.0), (9, 1.0)]])
def test_an_integral_beyond_what_was_measured_is_refused(points: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="generating 8 tokens needs steps from 0 to there"):
        integral(points, 8)


def test_generating_is_counted() -> None:
    assert generation_seconds(RUN, 64) == pytest.approx(64 * 1.5e-3)
    # Weights once a step, 20 bytes of state on average for each of 16 sequences.
    assert generation_floor_bytes(RUN, 64, 16) == 64 * (1000 + 16 * 20)


def test_two_shapes_are_compared_beside_the_paper() -> None:
    slower = replace(RUN, shape="second", read_seconds=5.0, steps=(steps_at(0, 3), steps_at(64, 6)))
    text = comparison([RUN, slower], 1024, 64)[0]
    assert "a prompt of 1,024 tokens is read 2.50 times as fast (paper: 3.73x" in text
    assert "64 tokens are generated 3.00 times as fast" in text


def run_of(runs: list[Run], **more: Any) -> dict[str, Any]:
    return {
        "command": "python benchmarks/end_to_end.py",
        "device": "a card",
        "versions": dict.fromkeys(
            ("python", "torch", "triton", "onnxruntime-gpu", "onnxruntime"), "1"
        ),
        "weights": "bfloat16",
        "copy_bytes_per_second": 1e6,
        "tokens": 1024,
        "generate": None,
        "runs": [asdict(run) for run in runs],
        "transformers": None,
        **more,
    }


def test_the_tables() -> None:
    text = text_of(run_of([RUN], transformers="No module named 'transformers'"), [RUN])
    assert "Not run: transformers (No module named 'transformers')." in text
    assert "| first | 1,024 | 256 | 2.00 | 512 |" in text
    assert text.count("1.8 KiB") == 1  # 3,000 - 200 - 1,000 bytes
    # 1,030 bytes at 1 MB/s are 1.03 ms, of 2.
    assert "| first | 64 | 2.000 | 2.000 to 2.000 | 500 | 1.030 | 52% |" in text


def test_a_program_reads_its_own_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, written = tmp_path / "run.json", tmp_path / "measurements.md"
    saved.write_text(json.dumps(run_of([RUN])))
    arguments = ["end_to_end.py", "--from", str(saved), "--write", str(written)]
    monkeypatch.setattr(sys, "argv", arguments)
    end_to_end.main()
    assert capsys.readouterr().out.strip() in written.read_text()


def test_a_model_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_bundle, "SHAPES", {"tiny": TINY})
    with random_bundle.random_bundle("tiny", "float32") as bundle:
        run = run_bundle("tiny", bundle, OPTIONS)
        manifest = open_bundle(bundle).manifest
    assert run.tokens == 300
    assert run.weight_bytes == manifest.weight_bytes
    assert run.read_seconds > 0
    assert [each.context for each in run.steps] == [0, 100]
    state_bytes = sum(spec.nbytes for spec in manifest.state_at(0))
    for each in run.steps:
        # A round is a difference of two times: beside other work the least may be below zero.
        assert each.least_ms <= each.median_ms <= each.most_ms
        assert each.most_ms > 0
        assert each.state_bytes == state_bytes
    assert run.context_bytes + run.weight_bytes < run.planned_bytes <= run.budget_bytes


def test_reading_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from longspan import load

    monkeypatch.setattr(random_bundle, "SHAPES", {"tiny": TINY})
    with (
        random_bundle.random_bundle("tiny", "float32") as bundle,
        load(bundle, budget="2GiB", device="cpu", backend="torch") as runtime,
    ):
        reading = Reading(runtime)
        reading.to(40)
        memory = reading.to(100)
        ids = np.random.default_rng(0)
        whole = runtime.read_tokens([ids.integers(64, size=40), ids.integers(64, size=60)])
        with pytest.raises(ValueError, match="100 tokens are read already; 100 are not more"):
            reading.to(100)
    assert memory.tokens == 100
    np.testing.assert_allclose(memory.last_logits, whole.last_logits, atol=1e-4)


def test_random_weights_repeat_one_block() -> None:
    values = torch.arange(5.0)
    found = random_bundle.repeated(values, (3, 4))
    assert found.flatten().tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize(
    ("shape", "billions"),
    [("samba-1.7b", 1.7), ("llama-1.6b", 1.6), ("mamba-2.8b", 2.8), ("mamba2-2.7b", 2.7)],
)
def test_shapes_have_the_parameters_of_their_names(shape: str, billions: float) -> None:
    from longspan.models.checkpoint import empty_decoder

    decoder = empty_decoder(random_bundle.SHAPES[shape])
    found = sum(parameter.numel() for parameter in decoder.parameters())
    assert found / 1e9 == pytest.approx(billions, rel=0.04)


def test_the_ops_of_a_pass_are_recorded() -> None:
    config = open_bundle(builtin_bundle()).manifest.config
    calls = builtin_ops.recorded_calls(builtin_bundle(), 3)
    counts: dict[str, int] = {}
    for call in calls:
        counts[call.op] = counts.get(call.op, 0) + call.count
    kinds = config.layers_by_kind()
    assert counts["selective_scan"] == counts["causal_conv"] == kinds["mamba"]
    assert counts["window_attention"] == kinds["window_attention"]
    assert counts["add_norm"] == len(config.layers) + 1


def test_an_op_gives_the_same_both_ways() -> None:
    calls = {each.op: each for each in builtin_ops.recorded_calls(builtin_bundle(), 3)}
    for op in ("selective_scan", "causal_conv"):
        expected = builtin_ops.torch_call(calls[op])()
        found = builtin_ops.session_call(calls[op], 1)()
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=1e-4)


def test_the_table_of_ops() -> None:
    timing = {"median_ms": 2.0, "least_ms": 1.0, "most_ms": 4.0, "rounds": 3}
    row = {"op": "linear", "shapes": "1x3", "tokens": 1, "count": 4, "torch": timing,
           "ONNX Runtime": timing | {"median_ms": 1.0}}  # fmt: skip
    run = run_of([]) | {"threads": 2, "bundle": "bundle", "rows": [row]}
    key, text = builtin_ops.section(run)
    assert key == "Ops of bundle on a card, threads: 2"
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert cells == [
        "1", "linear", "1x3", "4", "2.000", "1.000 to 4.000", "1.000", "1.000 to 4.000", "2.00",
        "8.00", "4.00",
    ]  # fmt: skip
