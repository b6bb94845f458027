"""Times over their floors, a row for each op and length: what is left to win, and who is where.

    draw(rows, "NVIDIA H100 80GB HBM3", Path("docs"))     # docs/roofline.png and docs/roofline.svg

Rows are those of `kernels.py --json`. Colours are Okabe and Ito's, told apart by colour-blind eyes,
and every implementation has a mark of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longspan.errors import MissingExtra

OWN = "longspan"
OWN_STYLE: dict[str, Any] = {"color": "#0072B2", "marker": "o", "markersize": 10}
COLORS = ("#E69F00", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9")
MARKS = ("s", "D", "^", "v", "P", "X", "<", ">", "d", "p", "h", "*", "8")


def style(place: int) -> dict[str, Any]:
    """Of the implementation at `place`: the first 78 differ."""
    mark = MARKS[place % len(MARKS)]
    return {"color": COLORS[place % len(COLORS)], "marker": mark, "markersize": 8}


def short(tokens: int) -> str:
    """16384 as 16K."""
    return f"{tokens // 1024}K" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def points(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Times over the floor: row of the plot -> implementation -> ratio, in the order of `rows`."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["timing"] is not None:
            label = f"{row['op'].replace('_', ' ')}, {short(row['tokens'])}"
            found.setdefault(label, {})[row["who"]] = row["timing"]["median_ms"] / row["floor_ms"]
    return found


def draw(rows: Sequence[Mapping[str, Any]], device: str, folder: Path) -> list[Path]:
    """Draw the rows that ran, as PNG and SVG.

    Raises:
        MissingExtra: matplotlib is not installed.
        ValueError: no row has a time.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ModuleNotFoundError as error:
        raise MissingExtra(
            needed_for="Drawing a plot", package="matplotlib", extra="plot"
        ) from error
    found = points(rows)
    if not found:
        raise ValueError("there is no time to draw: every row was left out")
    shown = dict.fromkeys(who for ratios in found.values() for who in ratios if who != OWN)
    styles = {OWN: OWN_STYLE} | {who: style(place) for place, who in enumerate(shown)}
    with matplotlib.rc_context({"font.size": 13}):
        figure = Figure(figsize=(10, 2.6 + 0.36 * len(found)), layout="constrained")
        axes = figure.subplots()
        for place, ratios in enumerate(found.values()):
            axes.plot(
                [min(ratios.values()), max(ratios.values())], [place] * 2, color="0.8", zorder=1
            )
            for who, ratio in ratios.items():
                axes.plot([ratio], [place], linestyle="none", zorder=2, **styles[who])
        axes.axvline(1.0, color="black", linewidth=1.5)
        axes.set_yticks(range(len(found)), list(found))
        axes.invert_yaxis()
        axes.set(
            xscale="log",
            xlabel="time over the floor (1: each byte moved once, at the rate of a copy,\n"
            "or the matrix products at the rate of a large one); log scale, left is better",
            title=f"Kernels on {device}, batch 1",
        )
        axes.grid(visible=True, axis="x", which="both", alpha=0.3)
        axes.xaxis.set_major_formatter("{x:g}")
        handles = [
            Line2D([], [], linestyle="none", label=who, **each) for who, each in styles.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
        paths = [folder / f"roofline.{kind}" for kind in ("png", "svg")]
        for path in paths:
            figure.savefig(path, dpi=120)
    return paths
