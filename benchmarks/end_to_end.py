"""Whole models through the public API: reading, stepping, memory; into docs/measurements.md.

    python benchmarks/end_to_end.py --shape mamba2-2.7b --over-weights 0.6GiB --chunk 8K
    python benchmarks/end_to_end.py --shape samba-1.7b,llama-1.6b --prompt 128K --generate 64K
    python benchmarks/end_to_end.py --weights bfloat16,int8,int4 --tokens 8K --contexts 0

Weights are random, in a published shape: for memory and speed, not for words. Each shape, and each
dtype of weights, runs in a process of its own. Steps are timed after several contexts; where
--generate is given, the time to generate so many tokens after an empty prompt is the integral of
what was measured between them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise, product
from typing import Any, Protocol

import torch
from model_runs import Options, Run, Steps, apart, copy_rate, measure_shape, transformers_run
from report import (
    add_outputs,
    command_line,
    markdown_table,
    measured_or_read,
    publish,
    versions_line,
)

from longspan.export.weight_options import QUANTIZED_BITS
from longspan.runtime.doctor import examine
from longspan.sizes import format_bytes, parse_bytes, parse_tokens

# What Samba's paper prints (arXiv 2406.07522, section 4.3): batch 16 on one A100.
PAPER = {"reading": 3.73, "generating": 3.64}


class Stepped(Protocol):
    """What was measured of steps, and the weights that each of them reads."""

    @property
    def shape(self) -> str:
        """Its name."""

    @property
    def weight_bytes(self) -> int:
        """Of the model."""

    @property
    def steps(self) -> Sequence[Steps]:
        """After each context."""


def parse_contexts(text: str) -> tuple[int, ...]:
    """Counts of tokens with commas between them, such as ``0,64K``."""
    return tuple(0 if each == "0" else parse_tokens(each) for each in text.split(","))


def integral(points: Sequence[tuple[int, float]], end: int) -> float:
    """Of a quantity known at several contexts, from 0 to `end`, straight lines between them.

    Raises:
        ValueError: the contexts do not begin at 0, or end before `end`.
    """
    found = sorted(points)
    contexts = [context for context, _ in found]
    if not found or contexts[0] != 0 or contexts[-1] < end:
        raise ValueError(f"generating {end:,} tokens needs steps from 0 to there: {contexts}")
    total = 0.0
    for (left, low), (right, high) in pairwise(found):
        until = min(right, end)
        if until > left:
            at_until = low + (high - low) * (until - left) / (right - left)
            total += (until - left) * (low + at_until) / 2
    return total


def generation_seconds(run: Stepped, tokens: int) -> float:
    """Seconds to generate `tokens` after an empty prompt."""
    return integral([(each.context, each.median_ms) for each in run.steps], tokens) / 1e3


def generation_floor_bytes(run: Stepped, tokens: int, sequences: int) -> float:
    """Bytes that generating `tokens` in each of some sequences at once must read.

    The weights once a step, each sequence's state once.
    """
    states = integral([(each.context, each.state_bytes) for each in run.steps], tokens)
    return tokens * run.weight_bytes + sequences * states


def reading_rows(runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    """The readings for people."""
    for run in runs:
        yield (
            run.shape,
            f"{run.tokens:,}",
            f"{run.chunk_tokens:,}",
            f"{run.read_seconds:.2f}",
            f"{run.tokens / run.read_seconds:,.0f}",
            format_bytes(run.weight_bytes),
            format_bytes(run.context_bytes),
            format_bytes(run.peak_bytes),
            format_bytes(run.planned_bytes),
            format_bytes(max(0, run.peak_bytes - run.context_bytes - run.weight_bytes)),
        )


def step_rows(
    runs: Sequence[Stepped], bytes_per_second: float, sequences: int = 1
) -> Iterator[tuple[str, ...]]:
    """The steps for people, beside the time that reading weights and states once takes.

    A step gives each of the `sequences` a token; `state_bytes` are those of all of them.
    """
    for run in runs:
        for steps in run.steps:
            floor_ms = 1e3 * (run.weight_bytes + steps.state_bytes) / bytes_per_second
            yield (
                run.shape,
                f"{steps.context:,}",
                f"{steps.median_ms:.3f}",
                f"{steps.least_ms:.3f} to {steps.most_ms:.3f}",
                f"{1e3 * sequences / steps.median_ms:,.0f}",
                f"{floor_ms:.3f}",
                f"{floor_ms / steps.median_ms:.0%}",
            )


def comparison(runs: Sequence[Run], prompt: int, generate: int) -> list[str]:
    """The first shape against the second: reading, generating, and the paper's ratios."""
    first, second = runs[:2]
    pair = f"{first.shape} against {second.shape}"
    reading = second.read_seconds / first.read_seconds
    seconds = [generation_seconds(run, generate) for run in (first, second)]
    floors = [generation_floor_bytes(run, generate, 16) for run in (first, second)]
    said = (
        f"{pair}, one sequence: a prompt of {prompt:,} tokens is read {reading:.2f} times as fast "
        f"(paper: {PAPER['reading']}x on an A100), and {generate:,} tokens are generated "
        f"{seconds[1] / seconds[0]:.2f} times as fast: {seconds[0]:,.0f} s against "
        f"{seconds[1]:,.0f} s, integrated over the steps below. The paper's {PAPER['generating']}x "
        "is of 16 sequences at once, which share the reading of the weights (benchmarks/batch.py "
        "times such steps): one sequence alone reads them for itself, and its caches are the "
        "smaller part. By bytes of weights and states 16 sequences of the two are "
        f"{floors[1] / floors[0]:.2f} apart."
    )
    return [said, ""]


def packed_steps(runs: Sequence[Run]) -> list[str]:
    """The steps of each run against those of the first, where that has other weights."""
    first, *others = runs
    said = [
        f"A step after {steps.context:,} tokens against that of {first.shape} "
        f"({steps.median_ms:.3f} ms): "
        + ", ".join(
            f"{other.shape} {steps.median_ms / other.steps[at].median_ms:.2f} times as fast"
            for other in others
        )
        + "."
        for at, steps in enumerate(first.steps)
    ]
    return [" ".join(said), ""]


def beside_transformers(found: Mapping[str, Any] | str) -> list[str]:
    """What transformers took, or why it did not run."""
    if isinstance(found, str):
        return [f"Not run: transformers ({found}).", ""]
    said = (
        f"transformers {found['version']} on the same device, {found['layers']} layers of the "
        f"Mamba-2 2.7B shape, no head: {found['tokens']:,} tokens in {found['median_ms']:.1f} ms "
        f"({found['least_ms']:.1f} to {found['most_ms']:.1f}, {found['rounds']} rounds)."
    )
    return [said, ""]


def title(run: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """What was measured, in a line."""
    names = ", ".join(each.shape for each in runs)
    over = run.get("over_weights")
    within = "" if over is None else f", {format_bytes(over)} beyond context and weights"
    return f"{names} on {run['device']}{within}"


def text_of(run: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """The measurement as Markdown."""
    rate = run["copy_bytes_per_second"] / 1e12
    facts = (
        f"Random {run['weights']} weights; {versions_line(run['versions'])}. The floor of a step "
        f"is weights and state over {rate:.3g} TB/s, the rate of a copy."
    )
    lines = [
        f"### Whole models: {title(run, runs)}",
        "",
        f"`{run['command']}`",
        "",
        facts,
        "",
    ]
    if run["generate"]:
        lines += comparison(runs, run["tokens"], run["generate"])
    if "," in run["weights"]:
        lines += packed_steps(runs)
    if run["transformers"] is not None:
        lines += beside_transformers(run["transformers"])
    reading = (
        "shape", "tokens", "chunk", "read s", "tokens/s", "weights", "context", "peak", "planned",
        "peak beyond context and weights",
    )  # fmt: skip
    stepping = (
        "shape", "context", "ms a token", "least to most", "tokens/s", "floor ms", "of the floor"
    )  # fmt: skip
    lines += markdown_table(reading, reading_rows(runs))
    lines += ["", *markdown_table(stepping, step_rows(runs, run["copy_bytes_per_second"]))]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="mamba2-2.7b", help="names, with commas between them")
    parser.add_argument(
        "--weights", "--dtype", default="bfloat16", help="dtypes, int8 or int4, with commas"
    )
    parser.add_argument("--tokens", "--prompt", default="256K", help="that are read")
    parser.add_argument("--contexts", default="0,64K,256K", help="tokens before steps are timed")
    parser.add_argument("--generate", default=None, help="compare two shapes over so many tokens")
    parser.add_argument("--steps", type=int, default=64, help="of each of three rounds")
    parser.add_argument("--budget", help="of the whole process; default: nine tenths of the free")
    parser.add_argument("--over-weights", help="budget: so much beyond context and weights")
    parser.add_argument("--chunk", help="tokens of a chunk; default: the plan's choice")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--transformers", metavar="TOKENS", help="also its Mamba-2, 8 layers")
    add_outputs(parser)
    options = parser.parse_args()
    run = measured_or_read(options, measured)
    runs = [
        Run(**{**each, "steps": tuple(Steps(**steps) for steps in each["steps"])})
        for each in run["runs"]
    ]
    text = text_of(run, runs)
    publish(options, run, f"Whole models: {title(run, runs)}", text)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run what was asked, as JSON."""
    wanted = Options(
        device=options.device,
        budget=options.budget,
        over_weights=options.over_weights and parse_bytes(options.over_weights),
        tokens=parse_tokens(options.tokens),
        contexts=parse_contexts(options.contexts),
        steps=options.steps,
        chunk_tokens=options.chunk and parse_tokens(options.chunk),
    )
    runs = []
    kinds = options.weights.split(",")
    for shape, weights in product(options.shape.split(","), kinds):
        name = shape if len(kinds) == 1 else f"{shape} {weights}"
        print(f"measuring {name}", file=sys.stderr, flush=True)
        runs.append(asdict(measure_shape(shape, weights, name, wanted)))
    found: Mapping[str, Any] | str | None = None
    if options.transformers is not None:
        try:
            found = apart(transformers_run, parse_tokens(options.transformers))
        except (ModuleNotFoundError, torch.OutOfMemoryError) as error:
            found = str(error)
    report = examine(device=options.device)
    return {
        "command": command_line("end_to_end.py"),
        "device": report.device.name,
        "versions": report.versions,
        "weights": ", ".join(kinds),
        "over_weights": wanted.over_weights,
        "copy_bytes_per_second": apart(
            copy_rate, options.device, "bfloat16" if kinds[0] in QUANTIZED_BITS else kinds[0]
        ),
        "tokens": wanted.tokens,
        "generate": options.generate and parse_tokens(options.generate),
        "runs": runs,
        "transformers": found,
    }


if __name__ == "__main__":
    main()
