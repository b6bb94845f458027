"""The built-in model recalls keys from 16K tokens of a text that it was not trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "recall.py"


def run_benchmark(*options: str) -> dict[str, object]:
    """The only row of what the benchmark measured."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--json", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    row: dict[str, object] = json.loads(done.stdout)["rows"][0]
    return row


@pytest.mark.slow
def test_recall_at_16k_on_the_cpu() -> None:
    row = run_benchmark("--lengths", "16K", "--keys", "4", "--device", "cpu")
    assert row["trials"] == 4
    assert row["exact"] == 4, row["wrong"]


@pytest.mark.slow
def test_recall_at_2k_with_keys_and_values_in_int8() -> None:
    row = run_benchmark(
        "--lengths", "2K", "--keys", "5", "--device", "cpu", "--backend", "torch",
        "--cache", "int8",
    )  # fmt: skip
    assert row["trials"] == 5
    assert row["exact"] == 5, row["wrong"]


@pytest.mark.gpu
@pytest.mark.parametrize("caches", [[], ["--cache", "int8"]], ids=["weights' dtype", "int8"])
def test_recall_at_16k_on_the_gpu(caches: list[str]) -> None:
    row = run_benchmark("--lengths", "16K", "--keys", "40", "--device", "cuda", *caches)
    assert row["trials"] == 40
    assert isinstance(row["exact"], int)
    assert row["exact"] >= 38, row["wrong"]


@pytest.mark.parametrize("task", ["needles", "mary"])
def test_other_tasks_are_asked_too(task: str) -> None:
    row = run_benchmark("--task", task, "--lengths", "512", "--keys", "2", "--device", "cpu")
    assert row["trials"] == 2
    assert row["tokens"] == 512
