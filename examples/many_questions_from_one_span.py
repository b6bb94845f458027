"""Answer every line of a file of questions from one `.span` file, as JSON lines.

    longspan read builtin book.txt --out book.span
    python examples/many_questions_from_one_span.py builtin book.span questions.txt

A memory is only read: each question goes on from its own copy, so their order does not matter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import longspan


def answers(bundle: Path, span: Path, questions: list[str]) -> Iterator[dict[str, object]]:
    """Answer each question; give the answer, its tokens and its seconds."""
    with longspan.load(bundle, budget="512MiB", device="cpu") as runtime:
        memory = runtime.open(span)
        for question in questions:
            answer = runtime.ask(memory, question)
            text = "".join(answer)
            yield {
                "question": question,
                "answer": text,
                "tokens": answer.tokens,
                "seconds": answer.seconds,
            }


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    folder = longspan.builtin_bundle() if sys.argv[1] == "builtin" else Path(sys.argv[1])
    lines = Path(sys.argv[3]).read_text(encoding="utf-8").splitlines()
    for row in answers(folder, Path(sys.argv[2]), [line for line in lines if line.strip()]):
        print(json.dumps(row))
