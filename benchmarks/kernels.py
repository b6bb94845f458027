"""Every kernel beside its peers: times, errors, extra memory and the floor; into measurements.md.

    python benchmarks/kernels.py --op ssd,window_attention --tokens 16K,64K,256K --device cuda
    python benchmarks/kernels.py --op ssd --peer-path ~/mamba --json > ssd.json
    python benchmarks/kernels.py --from ssd.json --write docs/measurements.md --plot docs
    python benchmarks/kernels.py --resources --write docs/measurements.md      # needs no GPU
    python benchmarks/kernels.py --device cpu --op builtin --tokens 1,256      # torch, ONNX Runtime

Peers that are not installed are left out by name; --peer-path names folders where they lie. All are
called in turn, round after round, and a time counts only beside its error against float64.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from report import command_line, markdown_table, versions_line, write_section

from longspan import builtin_bundle
from longspan.runtime.doctor import examine
from longspan.sizes import parse_tokens

BUILTIN = "builtin"
COLUMNS = (
    "tokens", "who", "median ms", "least to most", "floor ms", "of the floor", "times longspan's",
    "extra MiB", "largest error", "relative error", "relative error of the state",
)  # fmt: skip


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run what was asked, as JSON."""
    import torch
    from kernel_case import Draw
    from kernel_cases import CASES
    from kernel_peers import PEERS
    from kernel_runs import Bench, run_case
    from timing import clock_for, measure_ceilings

    sys.path[:0] = options.peer_path
    torch.manual_seed(0)
    dtype, clock = getattr(torch, options.dtype), clock_for(options.device)
    small = {} if options.device == "cuda" else {"copy_bytes": 2**26, "width": 1024}
    ceilings = measure_ceilings(options.device, dtype, clock=clock, **small)
    bench = Bench(
        draw=Draw(device=options.device, dtype=dtype),
        clock=clock,
        ceilings=ceilings,
        rounds=options.rounds,
        seconds=options.seconds,
        error_tokens=options.error_tokens,
    )
    lengths = [parse_tokens(length) for length in options.tokens.split(",")]
    rows = []
    try:
        for op in options.op.split(","):
            print(f"measuring {op}", file=sys.stderr, flush=True)
            for row in run_case(CASES[op], PEERS[op], bench, lengths):
                rows.append(asdict(row))
    except KeyboardInterrupt:
        print(f"interrupted: the {len(rows)} rows until here are kept", file=sys.stderr)
    report = examine(device=options.device)
    return {
        "command": command_line("kernels.py"),
        "device": report.device.name,
        "versions": report.versions,
        "dtype": options.dtype,
        "ceilings": asdict(ceilings),
        "rows": rows,
    }


def cells(row: dict[str, Any], own_ms: float | None) -> tuple[str, ...]:
    """A row for people; `own_ms` is longspan's time at this length."""
    timing, error = row["timing"], row["error"]
    states = [each["relative"] for each in row["state_errors"]]
    extra = row["extra_bytes"]
    median = timing["median_ms"]
    return (
        f"{row['tokens']:,}",
        row["who"],
        f"{median:.3f}",
        f"{timing['least_ms']:.3f} to {timing['most_ms']:.3f}",
        f"{row['floor_ms']:.3f}",
        f"{row['floor_ms'] / median:.0%}",
        "-" if own_ms is None else f"{median / own_ms:.2f}",
        "-" if extra is None else f"{extra / 2**20:,.0f}",
        "-" if error is None else f"{error['largest']:.1e}",
        "-" if error is None else f"{error['relative']:.1e}",
        f"{max(states):.1e}" if states else "-",
    )


def tables(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and Markdown of a section for each op of a run."""
    for op in dict.fromkeys(row["op"] for row in run["rows"]):
        rows = [row for row in run["rows"] if row["op"] == op]
        own = {
            row["tokens"]: row["timing"]["median_ms"]
            for row in rows
            if row["who"] == "longspan" and row["timing"]
        }
        done = [row for row in rows if row["timing"]]
        skipped = {(row["who"], row["skipped"]): row for row in rows if row["skipped"]}
        ceilings = run["ceilings"]
        facts = (
            f"{rows[0]['what'][0].upper()}{rows[0]['what'][1:]}; {run['dtype']}, batch 1; "
            f"{versions_line(run['versions'])}. Floor: "
            f"{ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s of a copy, "
            f"{ceilings['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s of a matrix product, in the "
            f"same run. Medians of {min(row['timing']['rounds'] for row in done)} to "
            f"{max(row['timing']['rounds'] for row in done)} rounds in which all are called in "
            f"turn. Errors against float64 at {rows[0]['error_tokens']:,} tokens."
        )
        lines = [
            f"### Kernel: {op} in {run['dtype']} on {run['device']}",
            "",
            f"`{run['command']}`",
            "",
            facts,
            "",
            *markdown_table(COLUMNS, (cells(row, own.get(row["tokens"])) for row in done)),
        ]
        lines += ["", *(f"Not run: {who} ({why})." for who, why in skipped)] if skipped else []
        yield f"Kernel {op}: {run['dtype']} on {run['device']}", "\n".join(lines)


def merged(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Runs that `--json` printed, one a file, checked row by row."""
    from kernel_runs import Row

    runs = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    for run in runs:
        for row in run["rows"]:
            Row.from_json(row)
    return runs


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; an op that is not known is refused by argparse's message."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", default="ssd", help="names, with commas between them")
    parser.add_argument("--tokens", default="16K,64K,256K")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--peer-path", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=20, help="the most rounds of a comparison")
    parser.add_argument("--seconds", type=float, default=3.0, help="after which none begins")
    parser.add_argument("--error-tokens", type=int, help="default: each op's own")
    parser.add_argument("--bundle", type=Path, help="with --op builtin: another than the built-in")
    parser.add_argument("--threads", type=int, help="with --op builtin; default: the runtime's")
    parser.add_argument("--resources", action="store_true", help="registers, by compiling alone")
    parser.add_argument("--from", dest="files", type=Path, nargs="+", metavar="FILE.json")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    parser.add_argument("--plot", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    return options


def main() -> None:
    """Measure or read, print, and write where asked."""
    options = parse()
    if options.resources:
        from kernel_resources import section

        runs, sections = [], [section(options.op.split(","), options.dtype)]
    elif options.op == BUILTIN:
        import builtin_ops

        lengths = [parse_tokens(length) for length in options.tokens.split(",")]
        run = builtin_ops.measure(
            options.bundle or builtin_bundle(),
            lengths,
            threads=options.threads,
            rounds=options.rounds,
            seconds=options.seconds,
        )
        runs, sections = [run], [builtin_ops.section(run)]
    else:
        runs = merged(options.files) if options.files else [measured(options)]
        sections = [each for run in runs for each in tables(run)]
    if options.json:
        print(json.dumps(runs[0] if len(runs) == 1 else runs))
    else:
        print("\n\n".join(text for _, text in sections))
    if options.write is not None:
        for key, text in sections:
            write_section(options.write, key, text)
    if options.plot is not None:
        from roofline import draw

        rows = [row for run in runs for row in run["rows"]]
        order = list(dict.fromkeys(row["op"] for row in rows))
        rows.sort(key=lambda row: (order.index(row["op"]), row["tokens"]))
        draw(rows, runs[0]["device"], options.plot)


if __name__ == "__main__":
    main()
