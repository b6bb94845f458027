"""The demo: hide a fresh pass key in a real long document, read it, and ask for it.

The document is the language reference that every CPython carries (`pydoc_data.topics`), or any
text file. The key is drawn anew each time, so the answer can stand nowhere else.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from longspan.builtin import builtin_bundle
from longspan.engines import BackendName, Device, Engine
from longspan.errors import BadDocument, BadInput
from longspan.passkey import QUESTION, Needle, draw_needle, hide
from longspan.runtime.documents import Document, open_document
from longspan.runtime.loaded import Runtime
from longspan.runtime.reading import OnProgress
from longspan.runtime.runtime import load, plan_bundle
from longspan.runtime.tokens import Tokenizer, tokenize
from longspan.sizes import format_bytes

# The first that the plan fits is the demo's budget: libraries take more on some machines.
BUDGETS = ("128MiB", "192MiB", "256MiB", "1GiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo did. Sizes in bytes, times in seconds; `depth` is the key's place, 0 to 1."""

    document: str
    answer: str
    expected: str
    correct: bool
    depth: float
    seed: int
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
        return (
            f"{QUESTION} {self.answer}  ({verdict})\n"
            f"{self.tokens:,} tokens in {self.seconds:.1f} s ({self.tokens_per_second:,.0f} a "
            f"second, {self.engine}), the answer in {self.answer_seconds * 1000:.0f} ms.\n"
            f"Peak of the whole process {format_bytes(self.peak_bytes)}, planned "
            f"{format_bytes(self.planned_bytes)}, budget {format_bytes(self.budget_bytes)}."
        )


def describe_start(runtime: Runtime, document: Document, needle: Needle) -> str:
    """What is about to happen, in words."""
    return (
        f"Hidden in {document.name}, at {needle.depth:.0%} of it: the pass key {needle.key}.\n"
        f"Reading in chunks of {runtime.plan.chunk_tokens:,} tokens, within "
        f"{format_bytes(runtime.plan.budget_bytes)} for the whole process."
    )


def run_demo(
    *,
    document: Path | None = None,
    tokens: int | None = None,
    depth: float | None = None,
    seed: int | None = None,
    budget: str | int | None = None,
    bundle: Path | None = None,
    device: Literal["auto"] | Device = "cpu",
    backend: Literal["auto"] | BackendName = "auto",
    on_start: Callable[[Runtime, Document, Needle], None] | None = None,
    on_progress: OnProgress | None = None,
) -> DemoResult:
    """Hide a key, read the text, ask for the key.

    Args:
        document: a UTF-8 text; None for Python's language reference.
        tokens: read about so many tokens of it, up to the next line's end; None for all.
        depth: where the key goes, from 0 (start) to 1 (end); None for a random place.
        seed: of the key and its place; None for a fresh one.
        budget: bytes that the whole process may hold; None for the first of `BUDGETS` that fits.
        bundle: another bundle than the one that ships.
        device: where to run.
        backend: what runs it.
        on_start: called once before reading, with what is read and what was hidden.
        on_progress: called after each chunk.

    Raises:
        BadDocument: the document cannot be read.
        BadInput: `depth` is not within [0, 1], or the document has fewer than `tokens` tokens.
        DoesNotFit: the budget is too small.
    """
    if depth is not None and not 0 <= depth <= 1:
        raise BadInput(f"--depth is {depth}; it must be between 0 (the start) and 1 (the end).")
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    needle = draw_needle(random.Random(seed), depth)
    text = language_reference() if document is None else open_document(document)
    path = bundle or builtin_bundle()
    if budget is None:
        budget = _least_budget(path, device, backend)
    with load(path, budget=budget, device=device, backend=backend) as runtime:
        if tokens is not None:
            text = first_tokens(text, tokens, runtime.tokenizer)
        if on_start is not None:
            on_start(runtime, text, needle)
        started = time.perf_counter()
        memory = runtime.read(with_needle(text, needle), on_progress=on_progress)
        seconds = time.perf_counter() - started
        answer = runtime.ask(memory, QUESTION)
        said = answer.read().strip()
        measured = runtime.measured
        return DemoResult(
            document=text.name,
            answer=said,
            expected=needle.key,
            correct=said == needle.key,
            depth=needle.depth,
            seed=seed,
            tokens=memory.tokens,
            seconds=seconds,
            tokens_per_second=memory.tokens / seconds,
            answer_seconds=answer.seconds,
            peak_bytes=measured.peak_bytes,
            planned_bytes=measured.planned_bytes,
            budget_bytes=measured.budget_bytes,
            engine=runtime.engine,
        )


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


def language_reference() -> Document:
    """The topics of Python's language reference, one after another, as `help()` shows them.

    Raises:
        BadDocument: this Python ships without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise BadDocument(
            "The demo reads the language reference in `pydoc_data`, and this Python has none. "
            "Name a text of your own: longspan demo --document FILE"
        ) from error
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return replace(open_document(text), name="Python's language reference")


def with_needle(document: Document, needle: Needle) -> Document:
    """The document with the needle in it.

    A file tells its bytes; a text of unknown length is counted first, in a pass of its own.
    """
    total = document.bytes_total
    if total is None:
        total = sum(len(piece.encode()) for piece in document.pieces())
    return replace(document, pieces=lambda: hide(document.pieces(), needle, total_bytes=total))


def first_tokens(document: Document, tokens: int, tokenizer: Tokenizer) -> Document:
    """The start of a document that has about `tokens` tokens.

    Raises:
        BadInput: the document is shorter.
    """
    limit = _bytes_of_tokens(document, tokens, tokenizer)
    return replace(
        document, bytes_total=limit, pieces=lambda: first_bytes(document.pieces(), limit)
    )


def _bytes_of_tokens(document: Document, tokens: int, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the first `tokens` tokens, counted by pieces and shared out within one."""
    counted = 0
    for piece in tokenize(document.pieces(), tokenizer):
        if counted + len(piece.tokens) >= tokens:
            size = piece.end.text_bytes - piece.start.text_bytes
            return piece.start.text_bytes + size * (tokens - counted) // len(piece.tokens)
        counted += len(piece.tokens)
    raise BadInput(
        f"--tokens asks for {tokens:,} tokens, but {document.name} has {counted:,}. "
        "Give a smaller number, or a longer text with --document FILE."
    )


def first_bytes(pieces: Iterable[str], limit: int) -> Iterator[str]:
    """The first `limit` UTF-8 bytes of a text, without half a character at the end."""
    for piece in pieces:
        data = piece.encode()
        if len(data) >= limit:
            yield data[:limit].decode(errors="ignore")
            return
        limit -= len(data)
        yield piece
