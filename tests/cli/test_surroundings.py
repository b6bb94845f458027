"""The command line where things are not as they should be: the terminal, the disk, the files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from test_commands import command

from longspan import render
from longspan.runtime.asking import Answer
from longspan.runtime.verify import Check


class Said:
    """An answer that is known beforehand."""

    finish, draft = "stop", None

    def __init__(self, pieces: Callable[[], Iterator[str]]) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[str]:
        return self.pieces()


def test_the_document_is_never_replaced_by_what_was_read_of_it(tmp_path: Path) -> None:
    document = tmp_path / "quay.txt"
    document.write_text("It rained on the quay all day.\n" * 40, encoding="utf-8")
    before = document.read_bytes()
    done = command("read", "builtin", document, "--out", document, "--device", "cpu", status=1)
    assert done.stderr == (
        f"{document} cannot be written: a file that is no memory lies there, and would be lost. "
        "Name another file.\n"
    )
    assert document.read_bytes() == before


def test_output_without_unicode_and_in_few_columns() -> None:
    narrow = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "40"}
    shown = command("plan", "builtin", "--budget", "512MiB", "--device", "cpu", **narrow).stdout
    bars = [line for line in shown.splitlines() if "|" in line]
    assert len(bars) > 5
    assert all(len(line) <= 40 for line in bars)
    assert all("#" in line for line in bars)


def test_a_question_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "quay.txt").write_text("It rained.\n", encoding="utf-8")
    question = ["Who\udcff?", "--document", tmp_path / "quay.txt", "--device", "cpu"]
    done = command("ask", "builtin", *question, status=1)
    assert done.stderr.startswith("The question 'Who\\udcff?' holds half of a surrogate pair")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_under_the_output(options: list[str]) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "longspan", "info", "builtin", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    message = "The output cannot be written: No space left on device.\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_nothing_is_sent_or_left_behind_by_onnxruntime(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "CI": "", "TF_BUILD": ""}
    home |= {"GITHUB_ACTIONS": "", "ORT_RUNNING_UNIT_TESTS": ""}
    command("plan", "builtin", "--budget", "512MiB", "--device", "cpu", **home)
    assert [file.name for file in tmp_path.rglob("*") if "onnxruntime" in str(file)] == []


def test_an_answer_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def said() -> Iterator[str]:
        yield from ("a\tb ", "[bold]:smile:", "\n  c")

    render.stream_answer("Who [x] :y:?", cast(Answer, Said(said)), quiet=False)
    assert capsys.readouterr().out == "Who [x] :y:?\na\tb [bold]:smile:\n  c\n"


def test_a_document_from_the_standard_input(tmp_path: Path) -> None:
    text = "The pass key is 58214. Remember it.\n" + "It rained on the quay all day.\n" * 40
    asked = ["ask", "builtin", "What is the pass key?", "--document", "-", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "longspan", *asked], input=text, capture_output=True, text=True
    )
    assert done.stdout == "What is the pass key?\n58214\n", done.stderr
    out = tmp_path / "quay.span"
    read = ["read", "builtin", "-", "--out", str(out), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "longspan", *read], input=text, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert out.exists()


def test_json_has_no_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    check = Check(name="torch-cpu in chunks", max_error=float("inf"), tolerance=0.1, passed=False)
    render.print_json({"checks": (check,), "nan": [float("nan")]})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["checks"][0]["max_error"] is None
    assert found["nan"] == [None]
