"""The built-in model recalls keys from 16K tokens of a text it was not trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from longspan.passkey import FACT, draw_needle, hide

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


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_a_needle_is_hidden_once_on_a_line_of_its_own(depth: float, size: int) -> None:
    import random

    text = "".join(f"line {i} of the text\n" for i in range(100))
    needle = draw_needle(random.Random(5), depth)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    hidden = "".join(hide(pieces, needle, total_bytes=len(text)))
    lines = hidden.splitlines()
    fact = FACT.format(key=needle.key)
    assert lines.count(fact) == 1
    assert hidden.replace(fact + "\n", "") == text
    assert abs(lines.index(fact) / len(lines) - depth) < 0.03


def test_a_text_without_line_ends_gets_its_needle_at_the_end() -> None:
    import random

    needle = draw_needle(random.Random(5), 0.5)
    hidden = "".join(hide(["one ", "two"], needle, total_bytes=7))
    assert hidden == f"one two\n{FACT.format(key=needle.key)}\n"
