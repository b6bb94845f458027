"""How often what a long text says once is recalled: by length, by depth, over many fresh facts.

    python benchmarks/recall.py                                  # 16K tokens, 40 keys and depths
    python benchmarks/recall.py --lengths 16K,64K --depths 11 --keys 5 --device cuda --json
    python benchmarks/recall.py --task needles --bundle bundle/  # one of eight numbers

The text is Python's language reference, which the built-in model was not trained on, or --document
FILE. A longer length than the text repeats it, and says so. Exit status 1 if fewer than --required
of the keys come back exactly.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import (
    add_outputs,
    command_line,
    markdown_table,
    measured_or_read,
    versions_line,
    write_section,
)

import longspan
from longspan.runtime.doctor import examine
from longspan.runtime.documents import open_document
from longspan.runtime.filler import language_reference
from longspan.runtime.tokens import tokenize
from longspan.sizes import parse_tokens
from longspan.tasks import TASKS, Task, draw_quiz

Tokens = NDArray[np.int64]
SAID: dict[Task, str] = {
    "passkey": "a pass key",
    "needles": "one of eight numbers",
    "mary": "where somebody or something is",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One question: where its fact stood, and what was answered."""

    tokens: int
    depth: float
    expected: str
    answer: str
    correct: bool


def document_tokens(runtime: longspan.Runtime, document: Path | None, length: int) -> Tokens:
    """Tokens of the document, int64 [length]; a shorter one is repeated."""
    text = language_reference() if document is None else open_document(document)
    pieces: list[Tokens] = []
    have = 0
    for piece in chain.from_iterable(
        tokenize(source.pieces(), runtime.tokenizer) for source in repeat(text)
    ):
        pieces.append(piece.tokens)
        have += len(piece.tokens)
        if have >= length:
            return np.concatenate(pieces)[:length]
    raise AssertionError("a document that repeats never ends")


def with_facts(
    tokens: Tokens, facts: list[tuple[float, Tokens]], line_end: int
) -> Iterator[Tokens]:
    """The tokens with facts by depth, each after the first line end past its depth."""
    ends, done = np.flatnonzero(tokens == line_end) + 1, 0
    for depth, fact in facts:
        following = ends[ends > int(len(tokens) * depth)]
        place = int(following[0]) if len(following) else len(tokens)
        yield tokens[done:place]
        yield fact
        done = place
    yield tokens[done:]


def run_trial(
    runtime: longspan.Runtime, tokens: Tokens, task: Task, depth: float, seed: int
) -> Trial:
    """Hide fresh facts, the one that is asked for at `depth`; read, ask."""
    quiz = draw_quiz(task, random.Random(seed), depth)
    encode = runtime.tokenizer.encode
    facts = [(fact.depth, encode(fact.text + "\n", continues=True)) for fact in quiz.facts]
    line_end = int(encode("\n", continues=True)[-1])
    memory = runtime.read_tokens(with_facts(tokens, facts, line_end))
    answer = runtime.ask(memory, quiz.question).read().strip()
    return Trial(
        tokens=memory.tokens,
        depth=depth,
        expected=quiz.answer,
        answer=answer,
        correct=answer == quiz.answer,
    )


def depths_of(options: argparse.Namespace, rng: random.Random) -> list[float]:
    """Evenly spread depths, each `keys` times; or as many random ones."""
    if options.depths is None:
        return [rng.random() for _ in range(options.keys)]
    steps = max(1, options.depths - 1)
    return [i / steps for i in range(options.depths) for _ in range(options.keys)]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All trials of all lengths."""
    rows, rng = [], random.Random(options.seed)
    with longspan.load(
        options.bundle or longspan.builtin_bundle(),
        budget=options.budget,
        device=options.device,
        backend=options.backend,
        cache_dtype=options.cache,
    ) as runtime:
        for length in [parse_tokens(text) for text in options.lengths.split(",")]:
            tokens = document_tokens(runtime, options.document, length)
            started = time.perf_counter()
            trials = [
                run_trial(runtime, tokens, options.task, depth, rng.randrange(2**32))
                for depth in depths_of(options, rng)
            ]
            seconds = time.perf_counter() - started
            exact = sum(trial.correct for trial in trials)
            rows.append(
                {
                    "tokens": length,
                    "trials": len(trials),
                    "exact": exact,
                    "seconds": seconds,
                    "wrong": [asdict(trial) for trial in trials if not trial.correct],
                }
            )
            print(
                f"{length:>9,} tokens: {exact} of {len(trials)} exact, {seconds:.1f} s",
                file=sys.stderr,
            )
        engine, cache = runtime.engine, runtime.plan.cache_dtype
    report = examine(device=options.device, backend=options.backend)
    document = "Python's language reference" if options.document is None else options.document.name
    return {
        "command": command_line("recall.py"),
        "device": report.device.name,
        "engine": engine,
        "versions": report.versions,
        "task": options.task,
        "document": document,
        "cache": cache,
        "seed": options.seed,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        (
            f"{row['tokens']:,}",
            f"{row['exact']} of {row['trials']}",
            f"{row['seconds'] / row['trials']:.2f}",
        )
        for row in result["rows"]
    ]
    facts = (
        f"Text: {result['document']}, repeated where it is shorter; fresh values and depths, seed "
        f"{result['seed']}; {versions_line(result['versions'])}."
    )
    lines = [
        f"### Recall of {SAID[result['task']]}: {result['device']}, {result['engine']}"
        + ("" if result["cache"] is None else f", keys and values in {result['cache']}"),
        "",
        f"`{result['command']}`",
        "",
        facts,
        "",
        *markdown_table(("tokens", "exact", "seconds a key"), rows),
    ]
    return "\n".join(lines)


def main() -> None:
    """Read the options, run, print; fail where fewer keys come back than required."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="default: the built-in one")
    parser.add_argument("--task", choices=TASKS, default="passkey")
    parser.add_argument("--document", type=Path)
    parser.add_argument("--lengths", default="16K")
    parser.add_argument("--depths", type=int, help="evenly spread; default: random ones")
    parser.add_argument("--keys", type=int, default=40, help="trials, or trials a depth")
    parser.add_argument("--required", type=float, default=0.95, help="share of exact answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", default=None)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "onnx"))
    parser.add_argument("--cache", choices=("auto", "int8"), help="of keys and values")
    add_outputs(parser)
    options = parser.parse_args()
    result = measured_or_read(options, run)
    if options.json:
        print(json.dumps(result, indent=1))
    if options.write is not None:
        kept = "" if result["cache"] is None else f", keys and values in {result['cache']}"
        task = "" if options.task == "passkey" else f" of {options.task}"
        key = f"Recall{task}: {result['engine']} on {result['device']}{kept}"
        write_section(options.write, key, table(result))
    for row in result["rows"]:
        if row["exact"] < options.required * row["trials"]:
            sys.exit(1)


if __name__ == "__main__":
    main()
