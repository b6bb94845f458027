"""The demo: hide fresh facts in a real long document, read it, and ask about them.

The document is the language reference that every CPython carries (`pydoc_data.topics`), or any
text file. The facts are drawn anew each time, so the answer can stand nowhere else.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longspan.builtin import builtin_bundle, builtin_tasks
from longspan.engines import BackendName, Device, Engine
from longspan.errors import BadInput
from longspan.runtime.documents import open_document
from longspan.runtime.filler import Filler, filler, language_reference
from longspan.runtime.loaded import Runtime
from longspan.runtime.reading import OnProgress
from longspan.runtime.runtime import load, plan_bundle
from longspan.sizes import format_bytes
from longspan.tasks import Fact, Quiz, Task, draw_distractor, draw_quiz

# The first that the plan fits is the demo's budget: libraries take more on some machines.
BUDGETS = ("128MiB", "192MiB", "256MiB", "1GiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo did. Sizes in bytes, times in seconds.

    Attributes:
        document: name of the text.
        task: what was asked for.
        facts: what was hidden, and where, 0 to 1.
        question: as it was asked.
        answer: what the model said.
        in_words: the answer as a sentence.
        expected: what it should have said.
        correct: whether the two are the same.
        depth: place of the fact that was asked for; of a story, its start.
        repeats: how many times the text was read; below 1 where only its start was.
        distractors: other facts, one each time that the text begins again.
    """

    document: str
    task: Task
    facts: tuple[Fact, ...]
    question: str
    answer: str
    in_words: str
    expected: str
    correct: bool
    depth: float
    seed: int
    repeats: float
    distractors: int
    tokens: int
    seconds: float
    tokens_per_second: float
    answer_seconds: float
    peak_bytes: int
    planned_bytes: int
    budget_bytes: int
    engine: Engine

    def text(self) -> str:
        """The result for people."""
        verdict = "correct" if self.correct else f"wrong: it is {self.expected}"
        again = f", the text {self.repeats:.1f} times," if self.repeats > 1 else ""
        return (
            f"{self.question} {self.in_words}  ({verdict})\n"
            f"{self.tokens:,} tokens{again} in {self.seconds:.1f} s "
            f"({self.tokens_per_second:,.0f} a second, {self.engine}), "
            f"the answer in {self.answer_seconds * 1000:.0f} ms.\n"
            f"Peak of the whole process {format_bytes(self.peak_bytes)}, planned "
            f"{format_bytes(self.planned_bytes)}, budget {format_bytes(self.budget_bytes)}."
        )


def describe_start(runtime: Runtime, text: Filler, quiz: Quiz) -> str:
    """What is about to happen, in words."""
    within = (
        f"Reading in chunks of {runtime.plan.chunk_tokens:,} tokens, within "
        f"{format_bytes(runtime.plan.budget_bytes)} for the whole process."
    )
    return "\n".join((*_hidden(text.document.name, quiz.facts), *_repeats(text), within))


def _hidden(name: str, facts: tuple[Fact, ...]) -> Iterator[str]:
    if len(facts) == 1:
        yield f"Hidden in {name}, at {facts[0].depth:.0%} of it: {facts[0].text}"
        return
    yield f"Hidden in {name}:"
    yield from (f"  {fact.depth:4.0%}  {fact.text}" for fact in facts)


def _repeats(text: Filler) -> Iterator[str]:
    if text.tokens is not None and text.repeats > 1:
        yield (
            f"The text is too short for {text.tokens:,} tokens: it is read {text.repeats:.1f} "
            "times, and has another fact in it each time, which is not asked for."
        )


def run_demo(
    *,
    task: Task = "passkey",
    document: Path | None = None,
    tokens: int | None = None,
    depth: float | None = None,
    seed: int | None = None,
    budget: str | int | None = None,
    bundle: Path | None = None,
    device: Literal["auto"] | Device = "cpu",
    backend: Literal["auto"] | BackendName = "auto",
    on_start: Callable[[Runtime, Filler, Quiz], None] | None = None,
    on_progress: OnProgress | None = None,
) -> DemoResult:
    """Hide facts, read the text, ask about one of them.

    Args:
        task: what is hidden and asked for, see `longspan.tasks`.
        document: a UTF-8 text; None for Python's language reference.
        tokens: read about so many tokens: the start of the text, or the text again and again, each
            time with another fact in it that is not asked for. None for the text as it is.
        depth: where the fact goes that is asked for, from 0 (start) to 1 (end), or where a story
            begins; None for a random place.
        seed: of the facts and their places; None for a fresh one.
        budget: bytes that the whole process may hold; None for the first of `BUDGETS` that fits,
            or, with a `bundle`, for nine tenths of what is free.
        bundle: another bundle than the one that ships; it is asked whatever it was trained for.
        device: where to run.
        backend: what runs it.
        on_start: called once before reading, with what is read and what was hidden.
        on_progress: called after each chunk.

    Raises:
        BadDocument: the document cannot be read, or is too short to hide anything in.
        BadInput: `depth` is not within [0, 1], `tokens` are too few, or the built-in model does not
            answer `task`.
        BudgetExceeded: the process holds more than the budget.
        DoesNotFit: the budget is too small.
    """
    _check(task, depth, builtin_tasks() if bundle is None else None)
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    rng = random.Random(seed)
    quiz = draw_quiz(task, rng, depth)
    source = language_reference() if document is None else open_document(document)
    path = bundle or builtin_bundle()
    if budget is None and bundle is None:
        budget = _least_budget(path, device, backend)
    # The text is cut where its bytes promise so many tokens, and holds facts beside.
    most = None if tokens is None else tokens + tokens // 8
    with load(path, budget=budget, tokens=most, device=device, backend=backend) as runtime:
        text = filler(source, tokens=tokens, tokenizer=runtime.tokenizer)
        others = distractors(task, rng, text.repeats)
        if on_start is not None:
            on_start(runtime, text, quiz)
        started = time.perf_counter()
        memory = runtime.read(text.holding((*quiz.facts, *others)), on_progress=on_progress)
        seconds = time.perf_counter() - started
        answer = runtime.ask(memory, quiz.question)
        said = answer.read().strip()
        measured = runtime.measured
        return DemoResult(
            document=source.name,
            task=task,
            facts=quiz.facts,
            question=quiz.question,
            answer=said,
            in_words=quiz.in_words(said),
            expected=quiz.answer,
            correct=said == quiz.answer,
            depth=quiz.depth,
            seed=seed,
            repeats=text.repeats,
            distractors=len(others),
            tokens=memory.tokens,
            seconds=seconds,
            tokens_per_second=memory.tokens / seconds,
            answer_seconds=answer.seconds,
            peak_bytes=measured.peak_bytes,
            planned_bytes=measured.planned_bytes,
            budget_bytes=measured.budget_bytes,
            engine=runtime.engine,
        )


def _check(task: Task, depth: float | None, known: tuple[Task, ...] | None) -> None:
    if depth is not None and not 0 <= depth <= 1:
        raise BadInput(f"--depth is {depth}; it must be between 0 (the start) and 1 (the end).")
    if known is not None and task not in known:
        raise BadInput(
            f"--task {task} was asked for; the built-in model answers {', '.join(known)}. "
            "Ask for that, or name a model that was trained for it with --bundle BUNDLE."
        )


def distractors(task: Task, rng: random.Random, repeats: float) -> tuple[Fact, ...]:
    """A fact that is not asked for, for each time that a text begins again."""
    depths = ((again + rng.random()) / repeats for again in range(1, math.ceil(repeats)))
    return tuple(draw_distractor(task, rng, min(depth, 1.0)) for depth in depths)


def _least_budget(
    bundle: Path, device: Literal["auto"] | Device, backend: Literal["auto"] | BackendName
) -> str:
    """The first of `BUDGETS` that the plan fits, or the last of them."""
    fitting = (
        budget
        for budget in BUDGETS
        if plan_bundle(bundle, budget=budget, device=device, backend=backend).fits
    )
    return next(fitting, BUDGETS[-1])
