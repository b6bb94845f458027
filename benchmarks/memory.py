"""Peak memory against the plan, and speed, against length; written into docs/measurements.md.

    python benchmarks/memory.py --budget 1GiB --tokens 8K,64K,256K --write docs/measurements.md
    python benchmarks/memory.py --shape samba-421m --budget 2GiB,4GiB --tokens 8K,64K,256K
    python benchmarks/memory.py --shape mamba2-2.7b --budget 2500MB,1500MB --tokens 64K \\
        --against-resident --device cuda

Each row is a process of its own. The table lands between two marks that name the model, the engine
and the device, and replaces what stood there. A random shape's bundle is written to where TMPDIR
says. What --json printed, --from reads, so that another machine's run is written and drawn here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from report import (
    add_outputs,
    command_line,
    markdown_table,
    measured_or_read,
    publish,
    versions_line,
)
from streaming_runs import COLUMNS, StreamedRun, measure_streaming, streaming_rows

import longspan
from longspan.engines import device_of
from longspan.runtime.doctor import examine
from longspan.runtime.measure import PART_COLUMNS, Measurement, Part, Run, measure_bundle
from longspan.runtime.measure_plot import draw
from longspan.sizes import format_bytes, parse_tokens


def table(command: str, model: str, measurement: Measurement) -> str:
    """The measurement as Markdown."""
    budgets = ", ".join(format_bytes(each) for each in measurement.budgets)
    source = measurement.runs[0].peak_source
    columns = [column.removesuffix(">") for column in measurement.columns()]
    flat = max(
        max(peaks) / min(peaks) - 1
        for budget in measurement.budgets
        if (peaks := [run.peak_bytes for run in measurement.runs if run.budget_bytes == budget])
    )
    facts = (
        f"Budget {budgets} for the whole process; {versions_line(measurement.versions)}. "
        f"Peak: {source}. Largest peak over smallest of a budget: {flat:.2%}."
    )
    lines = [
        f"### Memory and speed: {model} on {measurement.device}, {measurement.engine}",
        "",
        f"`{command}`",
        "",
        facts,
        "",
        *markdown_table(columns, measurement.rows()),
        "",
        "Planned / measured MiB of each stage, without those before it:",
        "",
        *markdown_table([name.removesuffix(">") for name in PART_COLUMNS], measurement.part_rows()),
    ]
    return "\n".join(lines)


def streaming_table(run: Mapping[str, Any]) -> str:
    """Readings with weights that stream, as Markdown."""
    runs = [StreamedRun(**each) for each in run["streaming"]]
    facts = (
        f"The second reading of {runs[0].tokens:,} random tokens, the first row with all weights "
        f"on the device; {versions_line(run['versions'])}. Logits are off the first row's by so "
        "much of the largest: other chunks round in other places."
    )
    lines = [f"### {streaming_title(run)}", "", f"`{run['command']}`", "", facts, ""]
    return "\n".join([*lines, *markdown_table(COLUMNS, streaming_rows(runs))])


def streaming_title(run: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    return f"Weights that stream: {run['model']} on {run['device']}"


def measurement_of(facts: Mapping[str, Any]) -> Measurement:
    """A measurement that was printed as JSON."""
    runs = tuple(
        Run(**{**run, "parts": tuple(Part(**part) for part in run["parts"])})
        for run in facts["runs"]
    )
    return Measurement(**{**facts, "runs": runs})


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="default: the built-in one")
    parser.add_argument("--shape", help="random weights in a published shape instead")
    parser.add_argument("--weights", default="bfloat16", help="of a random shape: a dtype, or int8")
    parser.add_argument("--budget", help="one, or several as 1GiB,2GiB; default: what is free")
    parser.add_argument("--tokens", default="8K,64K,256K")
    parser.add_argument(
        "--against-resident",
        action="store_true",
        help="a second reading, beside one with all weights on the device",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "onnx"))
    add_outputs(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    run = measured_or_read(options, measured)
    if run["streaming"] is not None:
        key, text = streaming_title(run), streaming_table(run)
    else:
        measurement = measurement_of(run["measurement"])
        key = f"{run['model']}: {measurement.engine} on {measurement.device}"
        text = table(run["command"], run["model"], measurement)
        if options.plot is not None:
            draw(measurement, options.plot)
    publish(options, run, key, text)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run what was asked, as JSON."""
    if options.shape is not None:
        from random_bundle import random_bundle

        source: AbstractContextManager[Path] = random_bundle(options.shape, options.weights)
        model = f"{options.shape} (random {options.weights} weights)"
    else:
        source = nullcontext(options.bundle or longspan.builtin_bundle())
        model = "The built-in model" if options.bundle is None else options.bundle.name
    lengths = [parse_tokens(length) for length in options.tokens.split(",")]
    budgets = options.budget.split(",") if options.budget else None
    facts: dict[str, Any] = {"command": command_line("memory.py"), "model": model}
    with source as bundle:
        if options.against_resident:
            report = examine(device=options.device, backend="torch")
            device = device_of(report.engine)
            runs = measure_streaming(bundle, budgets or (), tokens=max(lengths), device=device)
            streaming = [asdict(each) for each in runs]
            return facts | {
                "device": report.device.name, "versions": report.versions, "streaming": streaming
            }  # fmt: skip
        measurement = measure_bundle(
            bundle,
            lengths,
            budget=budgets,
            device=options.device,
            backend=options.backend,
            on_start=lambda line: print(line, file=sys.stderr, flush=True),
        )
    return facts | {"streaming": None, "measurement": asdict(measurement)}


if __name__ == "__main__":
    main()
