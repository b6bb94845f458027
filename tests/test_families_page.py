"""docs/families.md is fresh, and every test that it names is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

import families
from family_rows import ROWS
from variant_rows import VARIANTS

ROOT = Path(__file__).parents[1]


def test_the_page_is_fresh() -> None:
    assert families.page() == families.PAGE.read_text(encoding="utf-8"), (
        "docs/families.md is stale; write it anew with: make docs"
    )


def test_the_tests_it_names_are_there() -> None:
    ids = sorted(
        {test for row in (*ROWS, *VARIANTS) for ids in row.shown_by().values() for test in ids}
    )
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *ids],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert set(ids) <= set(found.stdout.splitlines())
