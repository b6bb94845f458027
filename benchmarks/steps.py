"""A step of one sequence, as the runtime records it, in several dtypes of weights, side by side.

    python benchmarks/steps.py --weights bfloat16,int8,int4 --write docs/measurements.md

The recorded graph is replayed back to back; a step is what a caller waits for, from the token to
the logits in host memory. Weights are random, in a published shape, on the device as a bundle would
bring them there; each dtype runs in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from batch_steps import random_decoder
from model_runs import apart
from random_bundle import SHAPES
from report import (
    add_outputs,
    command_line,
    markdown_table,
    measured_or_read,
    publish,
    versions_line,
)
from timing import Timing

from longspan.engines import Device
from longspan.export.weight_options import QUANTIZED_BITS
from longspan.models.config import ModelConfig, Quantization
from longspan.runtime.backends.torch_steps import StepBuffers, StepGraph, TorchSteps
from longspan.runtime.doctor import examine
from longspan.sizes import format_bytes
from longspan.tensors import dtype_name

WEIGHTS = ("float32", "float16", "bfloat16", *QUANTIZED_BITS)
ROUNDS = 7
# Before the rounds: the clocks of the device are up.
WARM_UPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRun:
    """One dtype.

    Attributes:
        weights: the dtype, or int8 or int4.
        weight_bytes: of all parameters.
        graph: milliseconds of a replay among others; None where steps are not recorded.
        step: milliseconds of a step that is waited for.
    """

    weights: str
    weight_bytes: int
    graph: Timing | None
    step: Timing


def measure(config: ModelConfig, weights: str, device: Device, replays: int) -> StepRun:
    """Record a step with random weights, and time so many in each of `ROUNDS`."""
    stored = "bfloat16" if weights in QUANTIZED_BITS else weights
    if weights in QUANTIZED_BITS:
        config = replace(config, quantization=Quantization(bits=QUANTIZED_BITS[weights]))
    decoder = random_decoder(config, dtype_name(stored), device)
    steps_in_all = WARM_UPS + 2 * ROUNDS * replays + 2
    state = decoder.new_state(capacity=steps_in_all)
    with torch.inference_mode():
        buffers = StepBuffers(decoder, state, donate=True)
        graph = StepGraph(decoder, buffers) if device == "cuda" else None
        run = buffers.advance_no_sync if graph is None else graph.replay_no_sync_
        steps = TorchSteps(buffers, run, lambda: None)
        for _ in range(WARM_UPS):
            steps.step(0)
        alone = None if graph is None else Timing.of(_replayed(graph.replay_no_sync_, replays))
        waited = [_waited(steps, replays) for _ in range(ROUNDS)]
    return StepRun(
        weights=weights,
        weight_bytes=sum(each.nbytes for each in decoder.state_dict().values()),
        graph=alone,
        step=Timing.of(waited),
    )


def _replayed(replay: Callable[[], None], replays: int) -> list[float]:
    """Milliseconds of a replay in each round."""
    found = []
    for _ in range(ROUNDS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        for _ in range(replays):
            replay()
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last) / replays)
    return found


def _waited(steps: TorchSteps, count: int) -> float:
    """Milliseconds of a step, of so many."""
    started = time.perf_counter()
    for token in range(count):
        steps.step(token)
    return 1e3 * (time.perf_counter() - started) / count


def rows(runs: Sequence[StepRun]) -> list[tuple[str, ...]]:
    """The runs for people, each against the first."""
    return [
        (
            run.weights,
            format_bytes(run.weight_bytes),
            *_columns(run.graph, runs[0].graph),
            *_columns(run.step, runs[0].step),
        )
        for run in runs
    ]


def _columns(found: Timing | None, first: Timing | None) -> tuple[str, str, str]:
    if found is None or first is None:
        return "", "", ""
    return (
        f"{found.median_ms:.3f}",
        f"{found.least_ms:.3f} to {found.most_ms:.3f}",
        f"{first.median_ms / found.median_ms:.2f}",
    )


def text_of(run: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    runs = [
        StepRun(
            weights=each["weights"],
            weight_bytes=each["weight_bytes"],
            graph=None if each["graph"] is None else Timing(**each["graph"]),
            step=Timing(**each["step"]),
        )
        for each in run["runs"]
    ]
    columns = (
        "weights", "bytes", "graph ms", "least to most", "times as fast",
        "step ms", "least to most", "times as fast",
    )  # fmt: skip
    facts = f"Medians of {ROUNDS} rounds of {run['replays']}; {versions_line(run['versions'])}."
    return "\n".join(
        [f"### {title(run)}", "", f"`{run['command']}`", "", facts, "",
         *markdown_table(columns, rows(runs))]
    )  # fmt: skip


def title(run: dict[str, Any]) -> str:
    """What was measured, in a line."""
    return f"Steps: {run['shape']} on {run['device']}"


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run what was asked, as JSON."""
    runs = []
    for weights in options.weights.split(","):
        print(f"measuring {weights}", file=sys.stderr, flush=True)
        shape = SHAPES[options.shape]
        runs.append(asdict(apart(measure, shape, weights, options.device, options.replays)))
    report = examine(device=options.device)
    return {
        "command": command_line("steps.py"),
        "shape": options.shape,
        "device": report.device.name,
        "versions": report.versions,
        "replays": options.replays,
        "runs": runs,
    }


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="mamba2-2.7b", choices=tuple(SHAPES))
    parser.add_argument("--weights", default="bfloat16,int8,int4", help="dtypes, int8, int4")
    parser.add_argument("--replays", type=int, default=100, help="of a round")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    add_outputs(parser)
    options = parser.parse_args()
    unknown = [each for each in options.weights.split(",") if each not in WEIGHTS]
    if unknown:
        parser.error(f"--weights {', '.join(unknown)} is unknown; there are {', '.join(WEIGHTS)}")
    if options.replays < 1:
        parser.error(f"--replays is {options.replays}; it must be at least 1")
    run = measured_or_read(options, measured)
    text = text_of(run)
    publish(options, run, title(run), text)


if __name__ == "__main__":
    main()
