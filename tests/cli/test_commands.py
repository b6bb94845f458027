"""Every command with --json: one object on stdout, with the documented keys; and its refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import longspan
from longspan.cli import app

TEXT = "It rained on the quay all day.\n" * 40
FACT = "The pass key is 58214. Remember it.\n"


def command(
    *arguments: str | int | Path, status: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run longspan in a process of its own, and check its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "longspan", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def facts(*arguments: str | int | Path, status: int = 0) -> dict[str, Any]:
    """The JSON object that a command prints."""
    done = command(*arguments, "--json", status=status)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "quay.txt"
    path.write_text(TEXT + FACT + TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def span(document: Path) -> tuple[Path, dict[str, Any]]:
    path = document.with_suffix(".span")
    return path, facts("read", "builtin", document, "--out", path, "--device", "cpu")


def test_read(span: tuple[Path, dict[str, Any]]) -> None:
    path, found = span
    assert {"tokens", "chunk_tokens", "seconds", "peak_bytes", "planned_bytes"} <= found.keys()
    assert found["tokens"] > 500
    end_byte = len((TEXT + FACT + TEXT).encode())
    assert found["documents"] == [{"name": "quay.txt", "first_byte": 0, "end_byte": end_byte}]
    assert not found["byte_tokens"]
    assert path.stat().st_size < 2**20
    assert not path.with_name(path.name + ".partial").exists()


def test_ask_from_memory(span: tuple[Path, dict[str, Any]]) -> None:
    question = "What is the pass key?"
    found = facts("ask", "builtin", question, question, "--memory", span[0], "--device", "cpu")
    assert [row["answer"] for row in found["answers"]] == ["58214", "58214"]
    assert {"question", "answer", "tokens", "seconds"} <= found["answers"][0].keys()
    assert found["peak_bytes"] > 0


def test_ask_from_document_streams_text(document: Path) -> None:
    done = command(
        "ask", "builtin", "What is the pass key?", "--document", document, "--device", "cpu"
    )
    assert done.stdout == "What is the pass key?\n58214\n"


def test_ask_with_a_draft_model(span: tuple[Path, dict[str, Any]]) -> None:
    question = "What is the pass key?"
    ask = ["ask", "builtin", question, "--memory", span[0], "--device", "cpu"]
    with_memory = facts(*ask, "--draft", "builtin", "--draft-memory", span[0], "--draft-tokens", 3)
    (answer,) = with_memory["answers"]
    assert answer["answer"] == "58214"
    found = answer["draft"]
    assert found["acceptance_rate"] == 1
    assert found["proposed"] == found["accepted"] > 0
    assert found["forwards"] < found["tokens"] == answer["tokens"]
    assert with_memory["documents"][0]["first_byte"] == 0
    done = command(*ask, "--draft", "builtin")
    assert done.stdout == f"{question}\n58214\n"
    assert "drafted tokens accepted" in done.stderr
    plain = facts("plan", "builtin", "--budget", "1GiB", "--device", "cpu")
    both = facts("plan", "builtin", "--budget", "1GiB", "--device", "cpu", "--draft", "builtin")
    assert both["total_bytes"] > plain["total_bytes"] + 2 * 2**20


@pytest.mark.parametrize("kind", ["bundle", "memory"])
def test_info(kind: str, span: tuple[Path, dict[str, Any]]) -> None:
    path = {"bundle": longspan.builtin_bundle(), "memory": span[0]}[kind]
    assert facts("info", path)["kind"] == kind


def test_plan() -> None:
    found = facts("plan", "builtin", "--budget", "512MiB", "--device", "cpu", "--tokens", "256K")
    assert {"fits", "budget_bytes", "total_bytes", "chunk_tokens", "items"} <= found.keys()
    assert found["total_bytes"] == sum(item["bytes"] for item in found["items"])
    assert found["fits"]
    assert not {"smallest_budget_bytes", "fastest_budget_bytes"} & found.keys()


def test_plan_for_people() -> None:
    options = ["plan", "builtin", "--budget", "512MiB", "--device", "cpu"]
    shown = command(*options, "--explain").stdout
    assert "of the budget" in shown
    assert "█" in shown
    assert "the largest that is used: a longer one is no faster" in shown
    assert "measured in this process" in shown
    least = command(*options, "--fit").stdout
    assert least.startswith("The smallest budget that would do is ")
    assert len(least.splitlines()) == 1


def test_plan_that_does_not_fit() -> None:
    found = facts("plan", "builtin", "--budget", "64MiB", "--device", "cpu", "--fit", status=3)
    assert not found["fits"]
    assert found["smallest_budget_bytes"] > found["budget_bytes"]
    assert found["fastest_budget_bytes"] > found["smallest_budget_bytes"]
    assert found["longest_tokens"] is None


def test_the_smallest_budget_that_a_plan_names_does(tmp_path: Path) -> None:
    (tmp_path / "quay.txt").write_text(TEXT, encoding="utf-8")
    options = ["--device", "cpu", "--backend", "onnx"]
    least = facts("plan", "builtin", "--fit", *options)["smallest_budget_bytes"]
    read = ["read", "builtin", tmp_path / "quay.txt", "--out", tmp_path / "quay.span", *options]
    assert facts(*read, "--budget", least)["peak_bytes"] <= least


def test_read_that_does_not_fit_is_refused_with_the_arithmetic(document: Path) -> None:
    out = document.with_name("never.span")
    done = command(
        "read", "builtin", document, "--out", out, "--budget", "64MiB", "--device", "cpu", status=3
    )
    assert "The smallest budget that would do is" in done.stderr
    assert not out.exists()


def test_measure_with_plot(tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    found = facts(
        "measure", "builtin", "--budget", "256MiB,512MiB", "--tokens", "256,512",
        "--device", "cpu", "--plot", plot,
    )  # fmt: skip
    assert {"device", "budget_bytes", "runs"} <= found.keys()
    assert [(run["budget_bytes"] // 2**20, run["tokens"]) for run in found["runs"]] == [
        (256, 256), (256, 512), (512, 256), (512, 512),
    ]  # fmt: skip
    keys = {"tokens", "peak_bytes", "planned_bytes", "prefill_seconds", "decode_tokens_per_second"}
    planned = facts("plan", "builtin", "--budget", "256MiB", "--device", "cpu")
    for run in found["runs"]:
        assert keys <= run.keys()
        assert run["plan"].keys() == planned.keys()
        assert [part["stage"] for part in run["parts"]] == ["before", "loaded", "working"]
        assert sum(part["planned_bytes"] for part in run["parts"]) == run["planned_bytes"]
        assert sum(part["measured_bytes"] for part in run["parts"]) == run["peak_bytes"]
        assert run["peak_bytes"] <= run["planned_bytes"] <= 1.1 * run["peak_bytes"], run
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_verify() -> None:
    found = facts("verify", "builtin", "--device", "cpu")
    assert found["passed"]
    assert {"name", "max_error", "tolerance", "passed"} <= found["checks"][0].keys()


def test_doctor() -> None:
    found = facts("doctor", "--device", "cpu")
    assert {"device", "ops"} <= found.keys()
    assert {"op", "choice", "reason"} == found["ops"][0].keys()


def test_demo() -> None:
    found = facts("demo", "--tokens", "2K", "--seed", "11", "--depth", "0.4")
    keys = {"answer", "expected", "correct", "tokens", "seconds", "peak_bytes", "budget_bytes"}
    assert keys <= found.keys()
    assert found["correct"]
    assert found["peak_bytes"] <= found["budget_bytes"] <= 256 * 2**20


def test_demo_of_a_text_that_is_too_short(tmp_path: Path) -> None:
    document = tmp_path / "rain.txt"
    document.write_text(TEXT, encoding="utf-8")
    found = facts("demo", "--document", document, "--tokens", "2K", "--seed", "11")
    assert found["repeats"] > 1
    assert (found["task"], found["document"]) == ("passkey", "rain.txt")
    assert [fact["text"] for fact in found["facts"]] == [
        f"The pass key is {found['expected']}. Remember it."
    ]
    assert found["question"] == "What is the pass key?"
    assert found["in_words"] == f"The pass key is {found['answer']}."


def test_demo_of_another_bundle_asks_what_it_is_told(document: Path) -> None:
    options = ("--task", "mary", "--bundle", "builtin", "--document", document)
    done = CliRunner().invoke(app, ["demo", *map(str, options), "--seed", "1", "--json"])
    found = json.loads(done.stdout)
    assert found["question"].startswith("Where is ")
    assert len(found["facts"]) == 8
    assert done.exit_code == (0 if found["correct"] else 1)


def test_help_and_version() -> None:
    commands = ["demo", "export", "info", "plan", "read", "ask", "measure", "verify", "doctor"]
    shown = command("--help").stdout
    assert all(name in shown for name in commands)
    assert command("--version").stdout == f"longspan {longspan.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["info", "nowhere"],
            "nowhere does not exist. Name a checkpoint, a bundle's folder, or a .span file.",
        ),
        (
            ["ask", "builtin", "Who?"],
            "Give what to ask about, either --memory FILE.span or --document FILE: found neither.",
        ),
        (
            ["ask", "builtin", "Who?", "--memory", "a.span", "--draft-memory", "b.span"],
            (
                "--draft-memory b.span is what a draft model read, and there is no draft model. "
                "Name its bundle with --draft BUNDLE."
            ),
        ),
        (
            ["plan", "builtin", "--budget", "much"],
            "'much' is not a size. Write it like 512MiB, 2GB, 1.5GiB or 1048576.",
        ),
        (
            ["demo", "--depth", "2"],
            "--depth is 2.0; it must be between 0 (the start) and 1 (the end).",
        ),
        (
            ["measure", "builtin", "--plot", "nowhere/plot.png"],
            (
                "The plot nowhere/plot.png cannot be written: there is no folder nowhere. Name "
                "another file."
            ),
        ),
        (
            ["measure", "builtin", "--plot", "plot.jpg"],
            (
                "The plot plot.jpg cannot be written: its name does not end with .png. Name "
                "another file."
            ),
        ),
        (
            ["read", "builtin", "nowhere.txt", "--out", "never.span", "--device", "cpu"],
            "The document nowhere.txt does not exist. Check the name.",
        ),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    assert command(*arguments, status=1).stderr == message + "\n"
    assert facts(*arguments, status=1) == {"error": message}


@pytest.mark.slow
def test_an_interrupted_reading_goes_on(tmp_path: Path) -> None:
    document, span = tmp_path / "long.txt", tmp_path / "long.span"
    document.write_text(FACT + "A grey day, and no ship in sight.\n" * 8000, encoding="utf-8")
    read = ["read", "builtin", str(document), "--out", str(span), "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "longspan", *read], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("reading ")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().endswith(
            f"Stopped. What was read is kept beside {span}; the same command goes on from it.\n"
        )
        assert process.wait() == 130
    assert not span.exists()
    again = command(*read)
    assert again.stderr.startswith("Reading goes on after ")
    assert list(tmp_path.glob("*.partial")) == []
    found = facts("ask", "builtin", "What is the pass key?", "--memory", span, "--device", "cpu")
    assert found["answers"][0]["answer"] == "58214"


def test_an_interruption_before_the_first_chunk_promises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("longspan.runtime.runtime.load", interrupted)
    span = tmp_path / "never.span"
    done = CliRunner().invoke(app, ["read", "builtin", "book.txt", "--out", str(span)])
    assert (done.exit_code, done.stderr) == (130, "Stopped. Nothing was read yet.\n")


def test_usage_is_status_2() -> None:
    command("read", "builtin", status=2)
