"""`docs/papers.md`: each paper's claims with its figures and ours, and which runs they come from.

    text = page(results, notes={"samba.passkey-256k": "..."}, plots=["papers-recall.png"])

What was not measured says so; where a bar is missed the number stays, with its note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from papers_claims import PAPERS, Claim
from papers_results import Results
from papers_table import CLAIMS
from report import versions_line

from longspan.sizes import format_bytes

NOT_MEASURED = "not measured"
COLUMNS = ("claim", "the paper's figure", "must show", "ours", "holds", "training", "run")
LENGTH_COLUMNS = ("system", "task", "tokens", "exact", "share", "run")
WORD_COLUMNS = ("system", "tokens", "perplexity", "bits a byte", "run")
COST_COLUMNS = ("system", "parameters", "tokens read", "time", "device", "seed", "tasks")


def left(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """Lines of a table of words."""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def minutes(notes: Mapping[str, Any]) -> str:
    """What a training took."""
    if notes.get("gpu_minutes"):
        return f"{notes['gpu_minutes']:.1f} GPU-minutes"
    return f"{notes.get('cpu_minutes', 0.0):.1f} CPU-minutes"


def claim_rows(
    results: Results, claims: Sequence[Claim], notes: Mapping[str, str]
) -> Iterator[Sequence[str]]:
    """The claims of one paper for people."""
    for claim in claims:
        found = claim.ours(results)
        ours = NOT_MEASURED if found is None else found.text
        if claim.name in notes:
            ours += f". {notes[claim.name]}"
        costs = [
            f"{name}: {minutes(results.training[name])}"
            for name in claim.systems
            if name in results.training
        ]
        yield (
            claim.says,
            claim.figure,
            claim.bar,
            ours,
            "" if found is None or found.holds is None else "yes" if found.holds else "**no**",
            "; ".join(costs) or ("none" if not claim.systems else NOT_MEASURED),
            "" if found is None else ", ".join(map(str, found.runs)),
        )


def cost_rows(results: Results) -> Iterator[Sequence[str]]:
    """What each checkpoint cost."""
    for name, notes in sorted(results.training.items()):
        yield (
            name,
            f"{notes.get('parameters', 0):,}",
            f"{notes.get('tokens', 0):,}",
            minutes(notes),
            str(notes.get("device", "not recorded")),
            str(notes.get("seed", "not recorded")),
            ", ".join(notes.get("tasks", ())) or "the text itself",
        )


def length_rows(results: Results) -> Iterator[Sequence[str]]:
    """Exact answers of every system to every task, at every length."""
    for row in sorted(results.of("recall"), key=lambda row: (row["system"], row["task"])):
        yield (
            row["system"],
            row["task"],
            f"{row['tokens']:,}",
            f"{row['exact']} of {row['trials']}",
            f"{row['exact'] / row['trials']:.1%}",
            str(row["run"]),
        )


def word_rows(results: Results) -> Iterator[Sequence[str]]:
    """Words of every system at every length."""
    for row in sorted(results.of("words"), key=lambda row: str(row["system"])):
        yield (
            row["system"],
            f"{row['tokens']:,}",
            f"{row['perplexity']:.2f}",
            f"{row['bits_a_byte']:.4f}",
            str(row["run"]),
        )


def run_lines(results: Results) -> Iterator[str]:
    """The runs, numbered as the tables name them."""
    for number, run in enumerate(results.runs, 1):
        read = sum(row.get("read_tokens", 0) for row in results.rows if row["run"] == number)
        yield (
            f"{number}. `{run['command']}`: seed {run['seed']}, {run['device']}, "
            f"{versions_line(run['versions'])}; budget {run['budget']} of the whole process; "
            f"{run['seconds']:.0f} s, {read:,} tokens of documents read."
        )


def peak_line(results: Results) -> Iterator[str]:
    """The peaks of trained bundles beside their plans."""
    rows = [row for row in results.rows if row["what"] in ("recall", "words", "state")]
    if rows:
        peak, planned = (max(row[name] for row in rows) for name in ("peak_bytes", "planned_bytes"))
        yield ""
        yield (
            f"Largest peak of a process that read trained checkpoints: {format_bytes(peak)}; "
            f"largest plan: {format_bytes(planned)}."
        )


def missing_lines(results: Results) -> Iterator[str]:
    """What could not be measured, and why."""
    rows = results.of(NOT_MEASURED)
    if rows:
        yield from ("", "Not measured:", "")
    for row in rows:
        yield f"- {row['system']} (run {row['run']}): {row['why']}"


def page(results: Results, notes: Mapping[str, str], plots: Sequence[str]) -> str:
    """The whole page as Markdown."""
    lines = [
        "# The papers' results on small models",
        "",
        "Checkpoints of some 3.6M parameters, trained by `examples/train` and exported and read by",
        "longspan under a budget (`benchmarks/papers.py`, whose runs are listed below). They are",
        "hundreds of times smaller than the papers' models: a claim is what is compared, not a",
        "figure. Filler is text that no model was trained on; values are drawn by the run's seed.",
    ]
    for paper, title in PAPERS.items():
        claims = [claim for claim in CLAIMS if claim.paper == paper]
        lines += ["", f"## {title}", "", *left(COLUMNS, claim_rows(results, claims, notes))]
    lines += ["", "## Plots", ""] + [f"![{plot.rpartition('.')[0]}]({plot})" for plot in plots]
    lines += ["", "## Exact answers by length", "", *left(LENGTH_COLUMNS, length_rows(results))]
    lines += ["", "## Words by length", "", *left(WORD_COLUMNS, word_rows(results))]
    lines += ["", "## What training cost", "", *left(COST_COLUMNS, cost_rows(results))]
    lines += ["", "## Runs", "", *run_lines(results)]
    lines += [*peak_line(results), *missing_lines(results)]
    return "\n".join(lines) + "\n"
