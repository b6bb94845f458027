"""How much faster the scan of Mamba-2 is than Mamba's, from the page that kernels.py writes.

kernel_ratios(Path("docs/measurements.md").read_text())
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

SECTION = re.compile(
    r"<!-- Kernel mamba2_against_mamba1: (?P<what>.*?) -->(?P<text>.*?)<!-- end of", re.DOTALL
)
ROW = re.compile(
    r"^\| (?P<tokens>[\d,]+) \| longspan's selective scan \|(?:[^|]*\|){4} (?P<ratio>[\d.]+) \|",
    re.MULTILINE,
)


def kernel_ratios(page: str) -> Iterator[dict[str, Any]]:
    """Rows of times of Mamba's scan over Mamba-2's, by tokens; none where the page has none."""
    for section in SECTION.finditer(page):
        for row in ROW.finditer(section["text"]):
            yield {
                "what": "kernel ratio",
                "system": section["what"],
                "tokens": int(row["tokens"].replace(",", "")),
                "ratio": float(row["ratio"]),
            }
