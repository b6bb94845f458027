"""benchmarks/plans.py: what its rows say, its own lines of JSON, models of random weights."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import plan_models
import plans

from longspan.errors import BudgetExceeded
from longspan.models.config.model import LAYER_KINDS
from longspan.runtime.measure import measure_bundle

MIB = 2**20
ROW = plans.Row(
    model="samba float32",
    tokens=1024,
    factor=2.0,
    budget_bytes=200 * MIB,
    chunk_tokens=256,
    peak_bytes=100 * MIB,
    planned_bytes=108 * MIB,
    command="python benchmarks/plans.py",
    device="a machine",
    engine="onnx-cpu",
    versions=dict.fromkeys(("python", "torch", "triton", "onnxruntime-gpu", "onnxruntime"), "1"),
)
STOPPED = replace(ROW, factor=1.0, chunk_tokens=0, peak_bytes=0, stopped="too much")


def test_a_row_tells_what_held() -> None:
    assert ROW.held
    assert ROW.exact
    assert ROW.cells() == (
        "samba float32", "1,024", "2", "200.0", "256", "100.0", "108.0", "+8.0", "+8.0%"
    )  # fmt: skip
    assert not replace(ROW, budget_bytes=99 * MIB).held
    assert not STOPPED.held
    assert not STOPPED.exact
    assert STOPPED.cells()[4:] == ("stopped", "-", "-", "-", "-")


@pytest.mark.parametrize(
    ("engine", "peak", "planned", "exact"),
    [
        ("onnx-cpu", 100, 110, True),
        ("onnx-cpu", 100, 111, False),
        ("torch-cpu", 100, 89, False),
        ("torch-cuda", 800, 832, True),
        ("torch-cuda", 800, 833, False),
        ("torch-cuda", 800, 767, False),
        ("onnx-cuda", 2000, 2060, True),
        ("onnx-cuda", 2000, 2061, False),
    ],
)
def test_how_far_a_plan_may_be_off(engine: str, peak: int, planned: int, exact: bool) -> None:
    """Ten percent on CPUs; on CUDA three, or 32 MiB."""
    row = replace(ROW, engine=engine, peak_bytes=peak * MIB, planned_bytes=planned * MIB)
    assert row.exact == exact


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["plans.py", *arguments])
    return plans.main()


def test_lines_of_several_runs_are_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, files = tmp_path / "measurements.md", []
    for name, row in (("a", ROW), ("b", replace(STOPPED, command="python again"))):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text(json.dumps(asdict(row)) + "\n")
    given = [word for file in files for word in ("--from", str(file))]
    assert run([*given, "--write", str(page)], monkeypatch) == 1
    text = capsys.readouterr().out.strip()
    assert text in page.read_text()
    assert text.startswith(
        "### Plans against peaks: onnx-cpu on a machine\n\n`python benchmarks/plans.py`\n"
        "`python again`\n\n2 readings: 1 over their budget, 1 off by more than 10%; planned over "
        "peak +8.0% to +8.0%. "
    )
    assert text.endswith("\n\n- samba float32, 1,024: too much")
    assert run(given[:2], monkeypatch) == 0


def test_a_model_is_read_within_its_smallest_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--models", "mambabyte", "--width", "256", "--tokens", "40", "--factors", "1"]
    status = run([*arguments, "--device", "cpu", "--backend", "torch"], monkeypatch)
    (line,) = capsys.readouterr().out.splitlines()
    row = plans.Row(**json.loads(line))
    assert (row.model, row.tokens, row.engine) == ("mambabyte float32", 40, "torch-cpu")
    assert row.held
    assert status == 0

    def refuse(*_: object, **__: object) -> None:
        raise BudgetExceeded("more than that")

    monkeypatch.setattr(plans, "measure_bundle", refuse)
    assert run([*arguments, "--device", "cpu", "--backend", "torch"], monkeypatch) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["stopped"] == "more than that"


def test_models_are_read_side_by_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many at a time as were asked for; what one fails with is told when all have ended."""
    both = threading.Barrier(2, timeout=60)

    def fake(name: str, weights: str, *_: object) -> Iterator[plans.Row]:
        both.wait()
        yield replace(ROW, model=f"{name} {weights}", tokens=2048)
        if name == "llama":
            raise BudgetExceeded("more than that")
        both.wait()
        yield replace(ROW, model=f"{name} {weights}")

    monkeypatch.setattr(plans, "_of_model", fake)
    options = ["--device", "cpu", "--backend", "onnx", "--jobs", "2"]
    assert run([*options, "--models", "mamba,samba"], monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = plans.sorted_rows([plans.Row(**json.loads(line)) for line in lines])
    assert [row.tokens for row in rows] == [1024, 2048] * 2
    assert {row.model for row in rows} == {"mamba float32", "samba float32"}
    assert rows[0].model == rows[1].model
    both = threading.Barrier(1)
    with pytest.raises(BudgetExceeded):
        run([*options, "--models", "llama,samba"], monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("name", ["jobs", "times"])
def test_none_of_them_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run([f"--{name}", "0"], monkeypatch)
    assert f"--{name} is 0; it must be at least 1" in capsys.readouterr().err


def test_layers_over_and_over() -> None:
    once = plan_models.model_config("samba", 256)
    assert plan_models.model_config("samba", 256, 3) == replace(once, layers=once.layers * 3)


def test_deep_models_with_anchors_keep_their_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tokens see was held for every layer, 4 bytes a pair of them that no plan had."""
    config = plan_models.model_config("anchors", 256)
    deep = replace(config, layers=config.layers[:1] * 12)
    monkeypatch.setattr(plan_models, "model_config", lambda *_: deep)
    with plan_models.exported_model("anchors", 256, "float32", graphs=True) as bundle:
        found = measure_bundle(bundle, [512], budget="1GiB", device="cpu", backend="onnx")
    (read,) = found.runs
    assert read.chunk_tokens == 256
    assert 0.9 * read.planned_bytes < read.peak_bytes < read.planned_bytes


def test_models_have_every_kind_of_layer() -> None:
    found = {
        layer.kind
        for name in plan_models.MODELS
        for layer in plan_models.model_config(name, 256).layers
    }
    assert found == set(LAYER_KINDS)
