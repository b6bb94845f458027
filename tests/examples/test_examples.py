"""The examples do what they say, with the model that ships."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import longspan

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = "The sea was calm.\n" * 60
FACT = "The pass key is 90417. Remember it.\n"
QUESTION = "What is the pass key?"


def run_example(name: str, body: str) -> Any:
    """What `body` leaves in `result`; in a process of its own, as a budget counts the process."""
    code = f"import json, longspan, {name} as example\n{body}\nprint(json.dumps(result))"
    paths = os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_read_once_ask_often() -> None:
    body = f"result = example.main(longspan.builtin_bundle(), example.TEXT, {[QUESTION] * 2!r})"
    assert run_example("read_once_ask_often", body) == ["70316", "70316"]


def test_stream_with_cancel() -> None:
    part, whole = run_example("stream_with_cancel", "result = example.main()")
    assert whole == "52890"
    assert 0 < len(part) < len(whole)
    assert whole.startswith(part)


def test_many_questions_from_one_span(tmp_path: Path) -> None:
    span = str(tmp_path / "text.span")
    body = f"""
with longspan.load(longspan.builtin_bundle(), budget="512MiB", device="cpu") as runtime:
    runtime.read({TEXT + FACT + TEXT!r}).save({span!r})
result = list(example.answers(longspan.builtin_bundle(), {span!r}, {[QUESTION] * 3!r}))
"""
    rows = run_example("many_questions_from_one_span", body)
    assert [row["answer"] for row in rows] == ["90417"] * 3


def test_plain_onnxruntime_needs_neither_torch_nor_longspan(tmp_path: Path) -> None:
    document = tmp_path / "text.txt"
    document.write_text(TEXT + FACT + TEXT, encoding="utf-8")
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in ("torch", "longspan", "onnx"))
    arguments = [str(longspan.builtin_bundle()), str(document), QUESTION]
    code = (
        f"import runpy, sys; {blocked}sys.argv = {['plain', *arguments]!r}; "
        f"runpy.run_path({str(EXAMPLES / 'plain_onnxruntime.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("90417\n", 0), done.stderr
