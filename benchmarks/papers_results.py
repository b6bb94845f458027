"""What was measured, from one or several JSON files: rows, runs, and what training cost.

    results = Results.merged([json.loads(path.read_text()) for path in paths])
    results.one("recall", system="samba", task="passkey", tokens=65_536)

A row of a later file takes the place of the row of an earlier one that says the same of the same
system; a row says which run it is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
# What tells rows apart; the rest is what was found.
NAMES = ("what", "system", "task", "kind", "pair", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that was measured.

    Attributes:
        rows: each with `run`, the number of its run from 1.
        runs: command, seed, device, versions, budget.
        training: of each system, what its training cost.
    """

    rows: tuple[Row, ...]
    runs: tuple[Mapping[str, Any], ...]
    training: Mapping[str, Mapping[str, Any]]

    @classmethod
    def merged(cls, files: Iterable[Mapping[str, Any]]) -> Results:
        """The rows of all files, later ones in place of earlier ones."""
        found: dict[tuple[Any, ...], Row] = {}
        runs: list[Mapping[str, Any]] = []
        training: dict[str, Mapping[str, Any]] = {}
        for number, file in enumerate(files, 1):
            runs.append(file["run"])
            training |= file["training"]
            for row in file["rows"]:
                found[tuple(row.get(name) for name in NAMES)] = {**row, "run": number}
        return cls(rows=tuple(found.values()), runs=tuple(runs), training=training)

    def of(self, what: str, **equal: Any) -> list[Row]:
        """The rows of a kind with these values, by length."""
        rows = [
            row
            for row in self.rows
            if row["what"] == what and all(row.get(k) == v for k, v in equal.items())
        ]
        return sorted(rows, key=lambda row: row.get("tokens", 0))

    def one(self, what: str, **equal: Any) -> Row | None:
        """The only row of a kind with these values; None for none."""
        rows = self.of(what, **equal)
        return rows[0] if rows else None

    def pair(self, what: str, first: str, second: str, **equal: Any) -> tuple[Row, Row] | None:
        """The rows of two systems; None unless both are there."""
        found = [self.one(what, system=system, **equal) for system in (first, second)]
        return None if found[0] is None or found[1] is None else (found[0], found[1])

    def pairs(self, what: str, first: str, second: str, **equal: Any) -> list[tuple[Row, Row]]:
        """The rows of two systems at every length that both have."""
        theirs = {row["tokens"]: row for row in self.of(what, system=second, **equal)}
        mine = self.of(what, system=first, **equal)
        return [(row, theirs[row["tokens"]]) for row in mine if row["tokens"] in theirs]


def share(rows: Sequence[Row]) -> float:
    """Exact answers of all trials of the rows."""
    exact, trials = (sum(int(row[name]) for row in rows) for name in ("exact", "trials"))
    return exact / max(1, trials)
