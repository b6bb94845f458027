"""Read a document once, keep what was read, and ask as often as you like.

    python examples/read_once_ask_often.py BUNDLE DOCUMENT "Question?" ["Another?" ...]

Without arguments: the model that ships with longspan, and a short text of our own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import longspan

TEXT = "The harbour was quiet that night.\nThe pass key is 70316. Remember it.\n" + (
    "Nobody spoke on the way home, and the lamps along the quay went out one by one.\n" * 200
)


def main(bundle: Path, document: Path | str, questions: list[str]) -> list[str]:
    """Read `document`, answer `questions` from one `.span` file, and return the answers."""
    answers = []
    with longspan.load(bundle, budget="512MiB", device="cpu") as runtime:
        memory = runtime.read(document)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "document.span"
            memory.save(file)
            print(f"{memory.tokens:,} tokens read; {file.stat().st_size:,} bytes keep them")
            memory = runtime.open(file)
        for question in questions:
            answer = "".join(runtime.ask(memory, question))
            print(f"{question} {answer}")
            answers.append(answer)
    return answers


if __name__ == "__main__":
    if len(sys.argv) > 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    else:
        main(longspan.builtin_bundle(), TEXT, ["What is the pass key?", "What is the pass key?"])
