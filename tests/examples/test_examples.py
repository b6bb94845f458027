"""The examples do what they say, with the model that ships."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import longspan

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = "The sea was calm.\n" * 60
FACT = "The pass key is 90417. Remember it.\n"
QUESTION = "What is the pass key?"


def load_example(name: str) -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_read_once_ask_often() -> None:
    example = load_example("read_once_ask_often")
    answers = example.main(longspan.builtin_bundle(), example.TEXT, [QUESTION, QUESTION])
    assert answers == ["70316", "70316"]


def test_stream_with_cancel() -> None:
    part, whole = load_example("stream_with_cancel").main()
    assert whole == "52890"
    assert 0 < len(part) < len(whole)
    assert whole.startswith(part)


def test_many_questions_from_one_span(tmp_path: Path) -> None:
    span = tmp_path / "text.span"
    with longspan.load(longspan.builtin_bundle(), budget="512MiB", device="cpu") as runtime:
        runtime.read(TEXT + FACT + TEXT).save(span)
    example = load_example("many_questions_from_one_span")
    rows = list(example.answers(longspan.builtin_bundle(), span, [QUESTION] * 3))
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
