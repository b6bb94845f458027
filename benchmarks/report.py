"""Tables that a benchmark writes into a Markdown file, between marks of its own."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("python", "torch", "triton", "onnxruntime-gpu", "onnxruntime")


def versions_line(versions: Mapping[str, str]) -> str:
    """The versions that matter for a figure."""
    found = {name: versions[name] for name in PACKAGES if versions[name] != "not installed"}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def command_line(program: str) -> str:
    """The command as somebody would type it; this machine's folders and files are left out."""
    shown = list(sys.argv[1:])
    for option in ("--write", "--plot", "--peer-path"):
        while option in shown:
            at = shown.index(option)
            del shown[at : at + 2]
    return " ".join(["python", f"benchmarks/{program}", *shown])


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table of numbers, aligned to the right."""
    return [
        "| " + " | ".join(columns) + " |",
        "|" + " ---: |" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Options of a measurement that is one object of JSON: `measured_or_read`, `publish`."""
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--from", dest="file", type=Path, metavar="FILE.json")
    parser.add_argument("--write", type=Path, metavar="FILE.md")


def measured_or_read(
    options: argparse.Namespace, measured: Callable[[argparse.Namespace], dict[str, Any]]
) -> dict[str, Any]:
    """What the file of --from says, or what is measured now."""
    if options.file is None:
        return measured(options)
    run: dict[str, Any] = json.loads(options.file.read_text("utf-8"))
    return run


def publish(options: argparse.Namespace, run: Mapping[str, Any], key: str, text: str) -> None:
    """Print a measurement, as text or JSON, and write the text where asked."""
    print(json.dumps(run) if options.json else text)
    if options.write is not None:
        write_section(options.write, key, text)


def write_section(path: Path, key: str, text: str) -> None:
    """Put `text` between the marks of `key` in a Markdown file; at its end, if there are none."""
    before = path.read_text(encoding="utf-8") if path.exists() else "# Measurements\n"
    start, end = f"<!-- {key} -->", f"<!-- end of {key} -->"
    section = f"{start}\n{text}\n{end}"
    marked = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if marked.search(before):
        after = marked.sub(lambda _: section, before)
    else:
        after = before.rstrip("\n") + "\n\n" + section + "\n"
    path.write_text(after, encoding="utf-8")
