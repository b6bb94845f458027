"""The five papers' claims on small trained checkpoints, read by longspan: tables and plots.

    python benchmarks/papers.py --checkpoints .ckpt --data .data --device cuda --json papers.json
    python benchmarks/papers.py --checkpoints .ckpt --data .data --only samba --tokens 64K,256K \\
        --json more.json
    python benchmarks/papers.py --from papers.json more.json --write docs/papers.md

The checkpoints are folders that `examples/train/train.py` wrote, --data the text that it prepared.
Each is exported into a temporary bundle, and read under --budget, a limit for the whole process.
What a later file of --from has measured again takes the place of what an earlier one has; plots are
drawn beside the page. Notes on single claims stand in `papers_notes.toml`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from papers_bundles import SYSTEMS_OF, Bundles, bundles, checkpoint_of
from papers_kernels import kernel_ratios
from papers_page import page
from papers_plots import draw
from papers_results import Results
from report import command_line

from longspan.runtime.doctor import examine
from longspan.sizes import parse_tokens

HERE = Path(__file__).parent
NOTES = HERE / "papers_notes.toml"
MEASUREMENTS = HERE.parent / "docs" / "measurements.md"
KERNELS = "mamba2"  # whose table has figures of kernels.py, too
SYSTEMS = tuple(dict.fromkeys(name for names in SYSTEMS_OF.values() for name in names))


def names(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Names with commas between them, of those that are known.

    Raises:
        argparse.ArgumentTypeError: a name is none of these.
    """
    given = tuple(text.split(","))
    if unknown := sorted(set(given) - set(known)):
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)} was asked for; there are {', '.join(known)}"
        )
    return given


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for; the file of --json grows with every row."""
    # Not above: what only writes the page needs neither torch nor the trainer.
    from papers_measure import Options, measured

    wanted = Options(
        data=options.data,
        device=options.device,
        budget=options.budget,
        random_budget=options.random_budget,
        systems=options.systems,
        tokens=tuple(sorted(parse_tokens(text) for text in options.tokens.split(","))),
        depths=options.depths,
        keys=options.keys,
        documents=options.documents,
        text_tokens=parse_tokens(options.text_tokens),
        byte_texts=options.byte_texts,
        generated=options.generated,
        shapes=not options.no_shapes,
        seed=options.seed,
    )
    report = examine(device=options.device)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "run": {
            "command": command(),
            "device": report.device.name,
            "versions": report.versions,
            "seed": options.seed,
            "budget": options.budget,
            "seconds": 0.0,
        },
        "training": {},
        "rows": rows,
    }
    needed = {name for paper in options.only for name in SYSTEMS_OF[paper]}
    asked = [name for name in SYSTEMS if name in needed and name in options.systems]
    started = time.perf_counter()
    with bundles(options.checkpoints, asked, options.workers) as there:
        result["training"] = costs(there)
        print(f"exported in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        for paper in options.only:
            if paper == KERNELS:
                rows += kernel_ratios(MEASUREMENTS.read_text(encoding="utf-8"))
            for row in measured(paper, there, wanted):
                rows.append(row)
                print(shown(row), file=sys.stderr, flush=True)
                result["run"]["seconds"] = time.perf_counter() - started
                # After every row: what was found outlives whatever stops the run.
                if options.json is not None:
                    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def costs(there: Bundles) -> dict[str, Mapping[str, Any]]:
    """What the checkpoints that were found cost."""
    return {checkpoint_of(name): bundle.training for name, bundle in there.found.items()}


def command() -> str:
    """The command as somebody would type it, with this machine's folders left out."""
    line = command_line("papers.py").split(" ")
    for option, shown_as in (("--checkpoints", ".ckpt"), ("--data", ".data"), ("--json", "FILE")):
        if option in line:
            line[line.index(option) + 1] = shown_as
    return " ".join(line)


def shown(row: Mapping[str, Any]) -> str:
    """A row as it is found."""
    said = [str(row[name]) for name in ("what", "system", "task", "kind", "pair") if name in row]
    values = {
        name: row[name]
        for name in (
            "tokens", "exact", "trials", "perplexity", "bits_a_byte", "ms_a_byte", "state_bytes",
            "cached_bytes", "read_seconds", "step_ms", "tokens_per_second", "seconds", "why",
        )
        if row.get(name) is not None
    }  # fmt: skip
    found = (
        f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in values.items()
    )
    return f"{', '.join(said)}: {', '.join(found)}"


def write(results: Results, path: Path, notes: Path) -> None:
    """Write the page, and its plots beside it."""
    said = tomllib.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
    plots = [each.name for each in draw(results, path.parent) if each.suffix == ".png"]
    path.write_text(page(results, said, plots), encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = tuple(SYSTEMS_OF)
    parser.add_argument("--checkpoints", type=Path, help="a folder with one for each system")
    parser.add_argument("--data", type=Path, help="what examples/train/text.py wrote")
    parser.add_argument("--systems", type=lambda text: names(text, SYSTEMS), default=SYSTEMS)
    parser.add_argument("--only", type=lambda text: names(text, every), default=every)
    parser.add_argument("--tokens", default="4K,16K,64K,128K,256K", help="of pass-key documents")
    parser.add_argument("--depths", type=int, default=11)
    parser.add_argument("--keys", type=int, default=5, help="at each depth")
    parser.add_argument("--documents", type=int, default=32, help="of other tasks, each length")
    parser.add_argument("--text-tokens", default="64K", help="whose perplexity is taken")
    parser.add_argument("--byte-texts", type=int, default=32, help="of 8,192 bytes each")
    parser.add_argument("--generated", type=int, default=512, help="bytes that are timed")
    parser.add_argument("--no-shapes", action="store_true", help="no published shapes")
    parser.add_argument("--budget", default="2GiB", help="of the whole process")
    parser.add_argument("--random-budget", default="16GiB", help="for published shapes")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, help="that export; default: half the cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--from", dest="files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--notes", type=Path, default=NOTES)
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    return parser


def main() -> None:
    """Measure or read, print, and write where asked."""
    options = parser().parse_args()
    files = [json.loads(path.read_text(encoding="utf-8")) for path in options.files or ()]
    if options.checkpoints is not None:
        if options.data is None:
            parser().error("--checkpoints needs --data, the folder that the trainer reads")
        files.append(measure(options))
    if not files:
        parser().error("nothing to do: give --checkpoints and --data, or --from")
    results = Results.merged(files)
    said = tomllib.loads(options.notes.read_text("utf-8")) if options.notes.is_file() else {}
    print(page(results, said, []))
    if options.write is not None:
        write(results, options.write, options.notes)


if __name__ == "__main__":
    main()
