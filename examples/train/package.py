"""Put a trained checkpoint into the package as the built-in model, and say what it answers.

    python examples/train/package.py out/samba-final
    python examples/train/package.py out/samba-final --weights int8 --documents 40 --device cuda

The checkpoint is exported in float32 and in int8, and both answer the same fresh questions about
Python's language reference. int8 is only taken where it answers no fewer of them. What ships is at
most 20 MB; `training.json` beside the bundle tells what it was trained on, and which tasks it
answers: those with at least --required of the answers right, which are the ones that
`longspan demo` asks for.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saving import NOTES

import longspan
from longspan.builtin import TRAINING, builtin_bundle
from longspan.errors import BadInput, LongspanError
from longspan.export import export_bundle
from longspan.runtime.filler import filler, language_reference
from longspan.sizes import parse_tokens
from longspan.tasks import PROMPT, TASKS, Task, draw_quiz

MOST_BYTES = 20_000_000
WEIGHTS = ("float32", "int8")
# What resuming needs, and nobody else.
LEFT_OUT = ("progress", "log")

Scores = Mapping[Task, Mapping[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The checkpoint with its weights in one dtype, and how many answers were exact.

    Attributes:
        weights: "float32" or "int8".
        folder: the bundle.
        exact: by task and length.
    """

    weights: str
    folder: Path
    exact: Scores

    @property
    def bytes_total(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def share(self, task: Task, documents: int) -> float:
        """Of exact answers, over all lengths."""
        return sum(self.exact[task].values()) / (documents * len(self.exact[task]))

    def rows(self, documents: int) -> Iterator[str]:
        """For people."""
        for task, by_length in self.exact.items():
            for length, exact in by_length.items():
                yield (
                    f"{self.weights:8} {self.bytes_total / 1e6:5.1f} MB  {task:8} "
                    f"{length:8,} tokens: {exact} of {documents} exact"
                )


def trained(checkpoint: Path) -> dict[str, Any]:
    """What `training.json` says of a checkpoint, without what only resuming needs.

    Raises:
        BadInput: there is none, or the checkpoint was trained for no task.
    """
    path = checkpoint / NOTES
    if not path.is_file():
        raise BadInput(
            f"{checkpoint} has no {NOTES}, which tells what a checkpoint was trained for. Name a "
            "folder that examples/train/train.py wrote."
        )
    notes = json.loads(path.read_text(encoding="utf-8"))
    if not set(notes["tasks"]) & set(TASKS):
        raise BadInput(
            f"{checkpoint} was trained for {', '.join(notes['tasks'])}; the built-in model answers "
            f"at least one of {', '.join(TASKS)}. Train it with --tasks."
        )
    return {name: value for name, value in notes.items() if name not in LEFT_OUT}


def scored(bundle: Path, tasks: tuple[Task, ...], options: argparse.Namespace) -> Scores:
    """How many of the same questions a bundle answers exactly, by task and length."""
    exact: dict[Task, dict[int, int]] = {task: {} for task in tasks}
    with longspan.load(bundle, device=options.device) as runtime:
        for length in [parse_tokens(each) for each in options.lengths.split(",")]:
            text = filler(language_reference(), tokens=length, tokenizer=runtime.tokenizer)
            for task in tasks:
                quizzes = [
                    draw_quiz(task, random.Random(options.seed + i))
                    for i in range(options.documents)
                ]
                answers = [
                    runtime.ask(runtime.read(text.holding(quiz.facts)), quiz.question).read()
                    for quiz in quizzes
                ]
                exact[task][length] = sum(
                    answer.strip() == quiz.answer
                    for answer, quiz in zip(answers, quizzes, strict=True)
                )
    return exact


def chosen(candidates: Mapping[str, Candidate], wanted: str) -> Candidate:
    """The one that was asked for, if it may ship.

    Raises:
        BadInput: int8 answers fewer questions, or the bundle is too large.
    """
    plain, found = candidates["float32"], candidates[wanted]
    fewer = [
        f"{task} at {length:,} tokens ({exact} after {plain.exact[task][length]})"
        for task, by_length in found.exact.items()
        for length, exact in by_length.items()
        if exact < plain.exact[task][length]
    ]
    if fewer:
        raise BadInput(
            f"--weights {wanted} was asked for, and it answers fewer questions than float32: "
            f"{', '.join(fewer)}. Ship float32."
        )
    if found.bytes_total > MOST_BYTES:
        raise BadInput(
            f"The bundle in {wanted} has {found.bytes_total:,} bytes; what ships has at most "
            f"{MOST_BYTES:,}. Try --weights int8, or train a smaller model."
        )
    return found


def answered(found: Candidate, options: argparse.Namespace) -> tuple[Task, ...]:
    """The tasks of which enough answers are right.

    Raises:
        BadInput: there is none.
    """
    share = {task: found.share(task, options.documents) for task in found.exact}
    tasks = tuple(task for task in share if share[task] >= options.required)
    if not tasks:
        raise BadInput(
            f"No task has {options.required:.0%} of its answers right, so the model cannot ship. "
            "Train it for longer, or see --required."
        )
    return tasks


def package(options: argparse.Namespace) -> None:
    """Export, measure, choose, replace the built-in model.

    Raises:
        LongspanError: the checkpoint cannot be exported, or must not ship; nothing is replaced.
    """
    notes = trained(options.checkpoint)
    tasks = tuple(task for task in TASKS if task in notes["tasks"])
    with tempfile.TemporaryDirectory() as temporary:
        candidates = {}
        for weights in WEIGHTS:
            folder = Path(temporary) / weights
            export_bundle(options.checkpoint, folder, weights=weights, prompt_template=PROMPT)
            candidate = Candidate(
                weights=weights, folder=folder, exact=scored(folder, tasks, options)
            )
            candidates[weights] = candidate
            print("\n".join(candidate.rows(options.documents)), flush=True)
        found = chosen(candidates, options.weights)
        answers = answered(found, options)
        bundle = options.into / builtin_bundle().name
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.copytree(found.folder, bundle)
    notes |= {"answers": answers, "weights": found.weights, "exact": dict(found.exact)}
    notes |= {"documents": options.documents, "documents_seed": options.seed}
    text = json.dumps(notes, indent=1) + "\n"
    (options.into / TRAINING).write_text(text, encoding="utf-8")
    print(f"{bundle}: {found.weights}, answers {', '.join(answers)}.")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a folder that train.py wrote")
    parser.add_argument("--weights", choices=WEIGHTS, default="float32", help="what ships")
    parser.add_argument("--lengths", default="2K,16K", help="of the documents, in tokens")
    parser.add_argument("--documents", type=int, default=10, help="of each task and length")
    parser.add_argument("--required", type=float, default=0.9, help="share of exact answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--into", type=Path, default=builtin_bundle().parent, help="longspan/builtin"
    )
    return parser


if __name__ == "__main__":
    try:
        package(parser().parse_args())
    except LongspanError as error:
        sys.exit(str(error))
