"""Peak memory against the plan, and speed, against length; written into docs/measurements.md.

    python benchmarks/memory.py --budget 1GiB --tokens 8K,64K,256K --write docs/measurements.md
    python benchmarks/memory.py --shape samba-421m --budget 2GiB,4GiB --tokens 8K,64K,256K

Each row is a process of its own. The table lands between two marks that name the model, the engine
and the device, and replaces what stood there.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from report import command_line, markdown_table, versions_line, write_section

import longspan
from longspan.runtime.measure import PART_COLUMNS, Measurement, measure_bundle
from longspan.runtime.measure_plot import draw
from longspan.sizes import format_bytes, parse_tokens


def table(model: str, measurement: Measurement) -> str:
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
        f"`{command_line('memory.py')}`",
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


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="default: the built-in one")
    parser.add_argument("--shape", help="random weights in a published shape instead")
    parser.add_argument("--weights", default="bfloat16", help="dtype of a random shape's weights")
    parser.add_argument("--budget", required=True, help="one, or several as 1GiB,2GiB")
    parser.add_argument("--tokens", default="8K,64K,256K")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "onnx"))
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    if options.shape is not None:
        from random_bundle import random_bundle

        source: AbstractContextManager[Path] = random_bundle(options.shape, options.weights)
        model = f"{options.shape} (random {options.weights} weights)"
    else:
        source = nullcontext(options.bundle or longspan.builtin_bundle())
        model = "The built-in model" if options.bundle is None else options.bundle.name
    with source as bundle:
        measurement = measure_bundle(
            bundle,
            [parse_tokens(length) for length in options.tokens.split(",")],
            budget=options.budget.split(","),
            device=options.device,
            backend=options.backend,
            on_start=lambda line: print(line, file=sys.stderr, flush=True),
        )
    text = table(model, measurement)
    print(text)
    if options.write is not None:
        write_section(options.write, f"{model}: {measurement.engine} on {measurement.device}", text)
    if options.plot is not None:
        draw(measurement, options.plot)


if __name__ == "__main__":
    main()
