"""What the command line shows: tables, the progress bar, and JSON. It computes nothing."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from json import dumps as dump_json
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from longspan.runtime.asking import Answer
from longspan.runtime.reading import OnProgress
from longspan.runtime.reading import Progress as Reading
from longspan.sizes import format_bytes

PLAIN_LINE_SECONDS = 5.0


def prepare_streams() -> None:
    """Let anything be printed: to a stream that is closed, or that has not all characters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def out() -> Console:
    """Where results go."""
    return Console(soft_wrap=True, highlight=False, emoji=False)


def err() -> Console:
    """Where progress and errors go."""
    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def notice(line: str, style: str | None = None) -> None:
    """Say something beside the result."""
    err().print(line, style=style, markup=False)


def print_json(result: Any) -> None:
    """Print one JSON object on stdout: a dict, or a dataclass with its fields as keys."""
    sys.stdout.write(dump_json(plain(result), indent=1, allow_nan=False) + "\n")
    sys.stdout.flush()


class HasText(Protocol):
    """A result that can say itself in words."""

    def text(self) -> str:
        """The result for people."""


def print_result(result: HasText, *, json: bool) -> None:
    """Print a result: as JSON, or in words."""
    if json:
        print_json(result)
    else:
        out().print(result.text(), markup=False)


def plain(value: Any) -> Any:
    """`value` as JSON knows it: dataclasses as dicts, paths as text, tuples as lists, no NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> None:
    """Print a table; columns whose name ends with ``>`` are aligned to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(
            column.removesuffix(">"), justify="right" if column.endswith(">") else "left"
        )
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    out().print(table)


def fact_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Facts by name as rows for people; a name with ``bytes`` in it counts bytes."""
    for name, value in facts.items():
        yield name.replace("_", " "), _fact(value, is_bytes="bytes" in name)


def _fact(value: Any, *, is_bytes: bool) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}" + (f" ({format_bytes(value)})" if is_bytes else "")
    if isinstance(value, Mapping):
        parts = [f"{name}: {_fact(item, is_bytes=is_bytes)}" for name, item in value.items()]
        of_lists = any(isinstance(item, list | tuple) for item in value.values())
        return ("\n" if of_lists else ", ").join(parts)
    if isinstance(value, list | tuple):
        return ", ".join(_fact(item, is_bytes=is_bytes) for item in value)
    return str(value)


class _Rate(ProgressColumn):
    """Tokens a second, and memory now against the budget."""

    def render(self, task: Task) -> Text:
        """One cell; empty until the first chunk is done."""
        now: Reading | None = task.fields.get("reading")
        return Text(_rate(now) if now else "", no_wrap=True)


def _rate(now: Reading) -> str:
    memory = f"{format_bytes(now.memory_bytes)}/{format_bytes(now.budget_bytes)}"
    return f"{now.tokens:,} tokens {now.tokens_per_second:,.0f}/s {memory}"


@contextmanager
def reading_progress(*, quiet: bool) -> Iterator[OnProgress | None]:
    """Show reading: a bar on a terminal, a line now and then elsewhere, nothing when `quiet`."""
    console = err()
    if quiet:
        yield None
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("reading", total=None)

            def show(now: Reading) -> None:
                bar.update(task, completed=now.bytes_done, total=now.bytes_total, reading=now)

            yield show
    else:
        yield _plain_lines(console)


def _bar(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _plain_lines(console: Console) -> OnProgress:
    last = time.monotonic()

    def show(now: Reading) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_LINE_SECONDS:
            last = time.monotonic()
            share = f"{now.bytes_done / now.bytes_total:.0%} " if now.bytes_total else ""
            console.print(f"reading {share}{_rate(now)}", markup=False)

    return show


def stream_answer(question: str, answer: Answer, *, quiet: bool) -> None:
    """Compute the answer, and show it as it comes."""
    if quiet:
        answer.read()
        return
    console = out()
    console.print(question, style="bold", markup=False)
    for piece in answer:
        # As it is: rich would put spaces for tabs.
        sys.stdout.write(piece)
        sys.stdout.flush()
    console.print()
    if answer.finish == "room":
        notice("The answer ends here because the caches are full.")
    if answer.draft is not None:
        notice(answer.draft.text())


def answer_facts(question: str, answer: Answer) -> dict[str, Any]:
    """An answer as data."""
    drafts = {} if answer.draft is None else {"draft": answer.draft.to_json()}
    return {
        "question": question,
        "answer": answer.text,
        "tokens": answer.tokens,
        "seconds": answer.seconds,
        "first_token_seconds": answer.first_token_seconds,
        "finish": answer.finish,
        **drafts,
    }
