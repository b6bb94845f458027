"""Generating in several sequences side by side, which share the weights; into docs/measurements.md.

    python benchmarks/batch.py --shape samba-1.7b,llama-1.6b --batch 16 --generate 64K

Each shape runs in a process of its own, over the decoder alone: the runtime reads and answers one
sequence at a time. Nothing is read either: weights, caches and states are random, of the length
that each of `--contexts` says. The time to generate so many tokens after an empty prompt is the
integral of what was measured between them, as in end_to_end.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from batch_steps import BatchOptions, BatchRun, measure_batch
from end_to_end import (
    PAPER,
    generation_floor_bytes,
    generation_seconds,
    integral,
    parse_contexts,
    step_rows,
)
from model_runs import Steps, apart, copy_rate
from random_bundle import SHAPES
from report import (
    add_outputs,
    command_line,
    markdown_table,
    measured_or_read,
    publish,
    versions_line,
)

from longspan.errors import DoesNotFit
from longspan.runtime.doctor import examine
from longspan.sizes import format_bytes, parse_tokens


def memory_rows(runs: Sequence[BatchRun]) -> Iterator[tuple[str, ...]]:
    """What each shape holds, for people."""
    for run in runs:
        most = max(run.steps, key=lambda each: each.context)
        yield (
            run.shape,
            format_bytes(run.weight_bytes),
            f"{most.context:,}",
            format_bytes(most.state_bytes),
            format_bytes(run.peak_bytes),
        )


def comparison(runs: Sequence[BatchRun], generate: int) -> list[str]:
    """The first shape against the second in generating, beside the paper's ratio."""
    first, second = runs[:2]
    seconds = [generation_seconds(run, generate) for run in (first, second)]
    # The states are those of all sequences already.
    floors = [generation_floor_bytes(run, generate, 1) for run in (first, second)]
    means = [1e3 * each / generate for each in seconds]
    longest = [max(run.steps, key=lambda each: each.context) for run in (first, second)]
    said = (
        f"{first.shape} against {second.shape}: {generate:,} tokens in each of {first.batch} "
        f"sequences are generated {seconds[1] / seconds[0]:.2f} times as fast "
        f"(paper: {PAPER['generating']}x with 16 sequences on an A100): {seconds[0]:,.0f} s "
        f"against {seconds[1]:,.0f} s, {means[0]:.2f} and {means[1]:.2f} ms a step on average, "
        "integrated over the steps below. By bytes of weights and states the two are "
        f"{floors[1] / floors[0]:.2f} apart. After {longest[0].context:,} tokens a step is "
        f"{longest[1].median_ms / longest[0].median_ms:.2f} times as fast."
    )
    return [said, ""]


def title(run: Mapping[str, Any], runs: Sequence[BatchRun]) -> str:
    """What was measured, in a line."""
    names = ", ".join(each.shape for each in runs)
    return f"{names} on {run['device']}, sequences side by side: {run['batch']}"


def text_of(run: Mapping[str, Any], runs: Sequence[BatchRun]) -> str:
    """The measurement as Markdown."""
    rate = run["copy_bytes_per_second"] / 1e12
    facts = (
        f"{versions_line(run['versions'])}. Random {run['weights']} weights, caches and states: "
        "no prompt was read. Steps of the decoder alone, the next tokens chosen on the device; "
        f"medians of 3 rounds of {run['steps']} steps. The floor is weights and states over "
        f"{rate:.3g} TB/s, the rate of a copy; windows count as full, their shift does not count."
    )
    lines = [f"### Steps: {title(run, runs)}", "", f"`{run['command']}`", "", facts, ""]
    if run["generate"]:
        lines += comparison(runs, run["generate"])
    memory = ("shape", "weights", "context", "states and caches", "peak")
    lines += [*markdown_table(memory, memory_rows(runs)), ""]
    stepping = (
        "shape", "context", "ms a step", "least to most", "tokens/s", "floor ms", "of the floor"
    )  # fmt: skip
    rows = step_rows(runs, run["copy_bytes_per_second"], run["batch"])
    lines += markdown_table(stepping, rows)
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="samba-1.7b", help="names, with commas between them")
    parser.add_argument("--dtype", default="bfloat16", help="of weights and caches")
    parser.add_argument("--batch", type=int, default=16, help="sequences side by side")
    parser.add_argument("--contexts", default="0,2K,16K,64K", help="tokens before the steps")
    parser.add_argument("--generate", default=None, help="compare two shapes over so many tokens")
    parser.add_argument("--steps", type=int, default=64, help="of each of three rounds")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    add_outputs(parser)
    options = parser.parse_args()
    if options.file is None:
        try:
            require_measurable(options)
        except ValueError as error:
            parser.error(str(error))
    run = measured_or_read(options, measured)
    runs = [
        BatchRun(**{**each, "steps": tuple(Steps(**steps) for steps in each["steps"])})
        for each in run["runs"]
    ]
    text = text_of(run, runs)
    publish(options, run, f"Steps: {title(run, runs)}", text)


def require_measurable(options: argparse.Namespace) -> None:
    """Raise before anything is measured where what was asked makes no sense.

    Raises:
        ValueError: no sequence, a shape that is unknown, or no two shapes or contexts to compare.
    """
    shapes = options.shape.split(",")
    unknown = [shape for shape in shapes if shape not in SHAPES]
    if unknown:
        raise ValueError(f"--shape {', '.join(unknown)} is unknown; there are {', '.join(SHAPES)}")
    if options.batch < 1 or options.steps < 1:
        raise ValueError(f"--batch {options.batch}, --steps {options.steps}: 1 is the least")
    contexts = parse_contexts(options.contexts)
    if options.generate is not None:
        integral([(context, 0.0) for context in contexts], parse_tokens(options.generate))
        if len(shapes) != 2:
            raise ValueError(f"--generate compares two shapes; --shape names {len(shapes)}")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run what was asked, as JSON."""
    wanted = BatchOptions(
        device=options.device,
        batch=options.batch,
        contexts=parse_contexts(options.contexts),
        steps=options.steps,
    )
    runs = []
    for shape in options.shape.split(","):
        print(f"measuring {shape}", file=sys.stderr, flush=True)
        try:
            runs.append(asdict(apart(measure_batch, shape, options.dtype, wanted)))
        except DoesNotFit as error:
            raise SystemExit(str(error)) from error
    report = examine(device=options.device)
    return {
        "command": command_line("batch.py"),
        "device": report.device.name,
        "versions": report.versions,
        "weights": options.dtype,
        "batch": options.batch,
        "steps": options.steps,
        "copy_bytes_per_second": apart(copy_rate, options.device, options.dtype),
        "generate": options.generate and parse_tokens(options.generate),
        "runs": runs,
    }


if __name__ == "__main__":
    main()
