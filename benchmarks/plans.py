"""Planned memory against the measured peak: every family, lengths, budgets from the smallest on.

    python benchmarks/plans.py --tokens 1K,8K,64K --device cpu --write docs/measurements.md
    python benchmarks/plans.py --tokens 1K,8K,256K --device cuda --width 1024 --weights bfloat16 \\
        --jobs 4 > runs.jsonl
    python benchmarks/plans.py --from runs.jsonl --write docs/measurements.md

Models have random weights: neither plans nor peaks depend on them. Each reading is a process of its
own, which is given the smallest budget that `longspan plan` names for the length, or a multiple of
that. With --jobs several models are read side by side: a peak is the process's own. A line of JSON
is printed for each reading as it ends, so that a run that is cut short is not lost; --from reads
such lines, from several runs, too. The exit status is 1 where a peak passed its budget or a plan is
further off than it may be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from report import command_line, markdown_table, versions_line, write_section

from longspan.engines import BackendName, Device, Engine, device_of
from longspan.errors import BudgetExceeded, DoesNotFit
from longspan.runtime.doctor import examine
from longspan.runtime.measure import measure_bundle
from longspan.runtime.planning import plan_bundle
from longspan.sizes import parse_tokens

MIB = 2**20
COLUMNS = ("model", "tokens", "x smallest", "budget MiB", "chunk", "peak MiB", "planned MiB",
           "off MiB", "off")  # fmt: skip
# How far a plan may lie from the peak: a share of it, or bytes.
SHARE: Mapping[Device, float] = {"cpu": 0.10, "cuda": 0.03}
BYTES: Mapping[Device, int] = {"cpu": 0, "cuda": 32 * MIB}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A reading.

    Attributes:
        model: its name, and its weights.
        tokens: that were read.
        factor: the budget over the smallest that the plan names.
        budget_bytes: of the whole process.
        chunk_tokens: that went through the model together; 0 where it was stopped.
        peak_bytes: of the whole process on its device; 0 where it was stopped.
        planned_bytes: the plan's total.
        stopped: why the process was stopped, or refused the budget; None where it was not.
        command, device, engine, versions: of the run.
    """

    model: str
    tokens: int
    factor: float
    budget_bytes: int
    chunk_tokens: int = 0
    peak_bytes: int = 0
    planned_bytes: int = 0
    stopped: str | None = None
    command: str
    device: str
    engine: Engine
    versions: Mapping[str, str]

    @property
    def held(self) -> bool:
        """Whether the process stayed within its budget."""
        return self.stopped is None and self.peak_bytes <= self.budget_bytes

    @property
    def exact(self) -> bool:
        """Whether the plan is no further off than it may be, and not below the peak's share."""
        device = device_of(self.engine)
        most = max(SHARE[device] * self.peak_bytes, BYTES[device])
        return self.stopped is None and abs(self.planned_bytes - self.peak_bytes) <= most

    def cells(self) -> tuple[str, ...]:
        """The row for people."""
        first = (
            self.model, f"{self.tokens:,}", f"{self.factor:g}", f"{self.budget_bytes / MIB:,.1f}"
        )  # fmt: skip
        if self.stopped is not None:
            return (*first, "stopped", "-", "-", "-", "-")
        off = self.planned_bytes - self.peak_bytes
        return (
            *first,
            f"{self.chunk_tokens:,}",
            f"{self.peak_bytes / MIB:,.1f}",
            f"{self.planned_bytes / MIB:,.1f}",
            f"{off / MIB:+,.1f}",
            f"{off / self.peak_bytes:+.1%}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What reads."""

    device: Device
    backend: BackendName


def smallest_budget(bundle: Path, tokens: int, where: Where) -> int:
    """The least budget in bytes that does for a length, in a process like those that read."""
    plan = plan_bundle(
        bundle, budget="1TB", tokens=tokens, device=where.device, backend=where.backend
    )
    return plan.smallest_budget_bytes


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """The readings that were asked for, each once it has ended; --jobs models side by side."""
    report = examine(device=options.device, backend=options.backend)
    where = Where(
        device=device_of(report.engine),
        backend="onnx" if report.engine.startswith("onnx") else "torch",
    )
    facts = partial(
        Row,
        command=command_line("plans.py"),
        device=report.device.name,
        engine=report.engine,
        versions=report.versions,
    )
    ended: SimpleQueue[Row | Future[None]] = SimpleQueue()

    def read(weights: str, name: str) -> None:
        for row in _of_model(name, weights, options, where, facts):
            ended.put(row)

    with ThreadPoolExecutor(options.jobs) as pool:
        models = list(product(options.weights.split(","), names_of(options)))
        for weights, name in models:
            pool.submit(read, weights, name).add_done_callback(ended.put)
        done: list[Future[None]] = []
        while len(done) < len(models):
            each = ended.get()
            if isinstance(each, Row):
                yield each
            else:
                done.append(each)
    for model in done:
        model.result()


def names_of(options: argparse.Namespace) -> list[str]:
    """The models that were asked for."""
    # Processes that read import this file: with torch, which this imports, they would hold more.
    from plan_models import MODELS

    return options.models.split(",") if options.models else list(MODELS)


def _of_model(
    name: str, weights: str, options: argparse.Namespace, where: Where, facts: Callable[..., Row]
) -> Iterator[Row]:
    """The readings of one model."""
    # As in `names_of`.
    from model_runs import apart
    from plan_models import exported_model

    graphs, times = where.backend == "onnx", options.times
    model = f"{name} x{times} {weights}" if times > 1 else f"{name} {weights}"
    with exported_model(name, options.width, weights, graphs=graphs, times=times) as bundle:
        for tokens in map(parse_tokens, options.tokens.split(",")):
            least = apart(smallest_budget, bundle, tokens, where)
            for factor in map(float, options.factors.split(",")):
                budget = int(least * factor)
                yield facts(
                    model=model,
                    tokens=tokens,
                    factor=factor,
                    budget_bytes=budget,
                    **_reading(bundle, tokens, budget, where),
                )


def _reading(bundle: Path, tokens: int, budget: int, where: Where) -> dict[str, Any]:
    """What a reading found."""
    try:
        found = measure_bundle(
            bundle, [tokens], budget=budget, device=where.device, backend=where.backend
        )
    except (BudgetExceeded, DoesNotFit) as error:
        return {"stopped": str(error)}
    (run,) = found.runs
    return {
        "chunk_tokens": run.chunk_tokens, "peak_bytes": run.peak_bytes,
        "planned_bytes": run.planned_bytes,
    }  # fmt: skip


def summary(rows: Sequence[Row]) -> str:
    """What the rows say together."""
    broken = sum(not row.held for row in rows)
    wide = sum(not row.exact for row in rows)
    offs = [row.planned_bytes / row.peak_bytes - 1 for row in rows if row.stopped is None]
    device = device_of(rows[0].engine)
    allowed = f"{SHARE[device]:.0%}" + (f" or {BYTES[device] // MIB} MiB" * bool(BYTES[device]))
    return (
        f"{len(rows)} readings: {broken} over their budget, {wide} off by more than {allowed}; "
        f"planned over peak {min(offs, default=0):+.1%} to {max(offs, default=0):+.1%}."
    )


def sorted_rows(rows: Sequence[Row]) -> list[Row]:
    """Each model's readings together, shorter ones and smaller budgets first."""
    models = list(dict.fromkeys(row.model for row in rows))
    return sorted(rows, key=lambda row: (models.index(row.model), row.tokens, row.factor))


def table(rows: Sequence[Row]) -> str:
    """The readings as Markdown."""
    commands = dict.fromkeys(row.command for row in rows)
    rows = sorted_rows(rows)
    lines = [
        f"### {title(rows)}", "", *(f"`{command}`" for command in commands), "",
        f"{summary(rows)} {versions_line(rows[0].versions)}.", "",
        *markdown_table(COLUMNS, [row.cells() for row in rows]),
    ]  # fmt: skip
    stopped = [f"- {row.model}, {row.tokens:,}: {row.stopped}" for row in rows if row.stopped]
    return "\n".join([*lines, *([""] if stopped else []), *stopped])


def title(rows: Sequence[Row]) -> str:
    """What was measured, in a line."""
    return f"Plans against peaks: {rows[0].engine} on {rows[0].device}"


def main() -> int:
    """Measure or read, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", help="of plan_models.py; default: all")
    parser.add_argument("--weights", default="float32", help="dtypes, int8, int4")
    parser.add_argument("--width", type=int, default=512, help="a multiple of 256")
    parser.add_argument("--times", type=int, default=1, help="layers over and over: deep models")
    parser.add_argument("--tokens", default="1K,8K,64K")
    parser.add_argument("--factors", default="1,2,4", help="budgets over the smallest")
    parser.add_argument("--jobs", type=int, default=1, help="models that are read side by side")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "onnx"))
    parser.add_argument("--from", dest="files", type=Path, action="append", metavar="FILE.jsonl")
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    for name in ("jobs", "times"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least 1")
    rows = []
    if options.files:
        lines = [line for file in options.files for line in file.read_text("utf-8").splitlines()]
        rows = [Row(**json.loads(line)) for line in lines]
        print(table(rows))
    else:
        for row in measured(options):
            rows.append(row)
            print(json.dumps(asdict(row)), flush=True)
        print(summary(rows), file=sys.stderr)
    if options.write is not None:
        write_section(options.write, title(rows), table(rows))
    return 0 if all(row.held and row.exact for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
