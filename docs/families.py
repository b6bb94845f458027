"""Writes docs/families.md from the table of families, their tiny checkpoints and their tests.

    python docs/families.py            # make docs

A new family needs its row in `longspan.models.families.FAMILIES` and one in tests/family_rows.py;
what else is read as one of them, a row in tests/variant_rows.py.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from family_rows import ROWS, Row
from variant_rows import VARIANTS

from longspan.models.families import FAMILIES, Family, open_checkpoint
from longspan.models.foreign_config import REQUIRED, Field
from longspan.sizes import format_bytes

PAGE = Path(__file__).with_name("families.md")
LENGTHS = {"8K": 8 * 1024, "256K": 256 * 1024}
LAYER = re.compile(r"\.\d+\.")
OPENING = """\
# Families of checkpoints

Written by `make docs` from the code and from tiny checkpoints; a test fails when it is stale.

A checkpoint is a folder with weights and a `config.json`, or a file of weights with its config
beside it; `--config FILE` names another config. A `tokenizer.json` in the folder goes into the
bundle. Every key of a config and every tensor must be known: an unknown, missing or unsupported one
is refused by its name, with the nearest known. `longspan info CHECKPOINT` tells what one is.

Each claim of the next table is a link to the test that shows it. Tests on a GPU skip, with the
reason, where there is none. State is that of one sequence, for a published size with bfloat16
weights. A row below a family's is of what else is read as one: the models that Samba's paper
compares it with, and a Llama through anchors (`export --anchors`).
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page's text."""
    rows = {row.family: row for row in ROWS}
    ordered = [(family, rows[family.name]) for family in FAMILIES]
    also = {name: [each for each in VARIANTS if each.family == name] for name in rows}
    claimed = (each for family, row in ordered for each in (row, *also[family.name]))
    parts = [OPENING, *_claims(claimed)]
    for family, row in ordered:
        parts += _family(family, row, also[family.name])
    return "\n".join(parts)


def _claims(rows: Iterable[Row]) -> Iterator[str]:
    """The table of families by claims, each cell the tests that show it."""
    lines: list[str] = []
    for row in rows:
        claims = row.shown_by()
        if not lines:
            columns = ["family", *list(claims)[:-1], *(f"state at {name}" for name in LENGTHS)]
            lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        *tests, (_, sized) = claims.items()
        links = [_links(ids) for _, ids in tests]
        sizes = [
            f"{format_bytes(row.state_bytes_at(tokens))}<br>{_links(sized)}"
            for tokens in LENGTHS.values()
        ]
        name = f"[{row.family}](#{row.family})" if row.variant is None else row.variant
        lines.append("| " + " | ".join([name, *links, *sizes]) + " |")
    yield "\n".join(lines) + "\n"


def _links(ids: Iterable[str]) -> str:
    """Links to tests, by their ids."""
    return "<br>".join(
        f"[`{test.partition('::')[2]}`](../{test.partition('::')[0]})" for test in ids
    )


def _family(family: Family, row: Row, variants: Iterable[Row]) -> Iterator[str]:
    """The section of one family."""
    yield f"## {family.name}\n"
    files = ", ".join(f"`{name}`" for name in family.files)
    yield f"Files of {family.what}. Weights: {files}.\n"
    yield family.traps
    for part, fields in family.keys.items():
        yield from _keys(part, fields)
    yield from _tensors(row)
    for each in (row, *variants):
        yield from _state(each)


def _state(row: Row) -> Iterator[str]:
    """The layers of a published size, and its state."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in row.config().layers_by_kind().items())
    sizes = ", ".join(
        f"{format_bytes(row.state_bytes_at(tokens))} at {name}" for name, tokens in LENGTHS.items()
    )
    variant = "" if row.variant is None else f" ({row.variant})"
    yield f"### State of {row.published}{variant}\n"
    yield f"Layers: {kinds}. State in bfloat16: {sizes} tokens.\n"


def _keys(part: str, fields: Mapping[str, Field]) -> Iterator[str]:
    """The keys of one config: those that are read in a table, the ignored ones after it."""
    yield f"### Keys of {part}\n"
    lines = ["| key | value | if absent |", "|---|---|---|"]
    read = {key: field for key, field in fields.items() if not field.ignored}
    # Required ones first, as they were written otherwise.
    for key, field in sorted(read.items(), key=lambda item: item[1].default is not REQUIRED):
        lines.append(f"| `{key}` | {_value(field)} | {_default(field)} |")
    yield "\n".join(lines) + "\n"
    ignored = [f"`{key}`" for key, field in fields.items() if field.ignored]
    if ignored:
        yield f"Ignored: {', '.join(ignored)}.\n"


def _value(field: Field) -> str:
    if field.only:
        return "only " + " or ".join(f"`{json.dumps(value)}`" for value in field.only)
    if field.kind is object:
        return "checked by the family"
    return f"{field.kind.__name__}{', above zero' if field.positive else ''}"


def _default(field: Field) -> str:
    if field.default is REQUIRED:
        return "required"
    return "-" if field.default is None else f"`{json.dumps(field.default)}`"


def _tensors(row: Row) -> Iterator[str]:
    """The tensors of a tiny checkpoint and what they become; layers that are alike stand once."""
    with tempfile.TemporaryDirectory() as folder:
        row.write(Path(folder))
        weights = open_checkpoint(folder).weights
    lines: dict[str, None] = {}
    for weight in weights.values():
        for source, shape in weight.sources.items():
            cells = (
                f"`{LAYER.sub('.{i}.', source, count=1)}`",
                " x ".join(map(str, shape)),
                f"`{LAYER.sub('.{n}.', weight.name, count=1)}`",
            )
            lines[f"| {' | '.join(cells)} |"] = None
    yield "### Tensors\n"
    yield "Names and shapes of a tiny example, and the parameter that each becomes.\n"
    yield "\n".join(["| tensor | shape | parameter |", "|---|---|---|", *lines]) + "\n"


if __name__ == "__main__":
    main()
