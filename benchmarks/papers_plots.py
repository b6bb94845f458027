"""Plots of `docs/papers.md`, as PNG and SVG: recall by depth, perplexity and caches by length.

    draw(results, Path("docs"))     # docs/papers-recall.png, docs/papers-recall.svg and so on

A plot whose numbers were not measured is not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from papers_results import Results, Row
from roofline import OWN_STYLE, short, style

from longspan.errors import MissingExtra

HEAT = ("samba", "window")


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what there is.

    Returns:
        The files, a PNG before its SVG.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra(
            needed_for="Drawing a plot", package="matplotlib", extra="plot"
        ) from error
    figures: dict[str, Any] = {}
    keys = {name: results.of("recall", system=name, task="passkey") for name in HEAT}
    keys = {name: rows for name, rows in keys.items() if rows}
    if keys:
        figures["recall"] = Figure(figsize=(5.2 * len(keys), 4.6), layout="constrained")
        heat_maps(figures["recall"], keys)
    for name, what, value, label in (
        ("perplexity", "words", "perplexity", "perplexity of unseen text"),
        ("caches", "state", "state_bytes", "bytes of the state"),
    ):
        lines = by_system(results.of(what))
        if lines:
            figures[name] = Figure(figsize=(7.5, 5), layout="constrained")
            curves(figures[name], lines, value, label)
    paths = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            paths.append(folder / f"papers-{name}.{kind}")
            figure.savefig(paths[-1], dpi=120)
    return paths


def by_system(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each system that has two or more."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["system"], []).append(row)
    return {name: some for name, some in found.items() if len(some) > 1}


def heat_maps(figure: Any, keys: Mapping[str, Sequence[Row]]) -> None:
    """Shares of exact answers, a column a length and a row a depth, a map a system."""
    for axes, (name, rows) in zip(
        figure.subplots(1, len(keys), squeeze=False)[0], keys.items(), strict=True
    ):
        depths = [place for place, _, _ in rows[-1]["by_depth"]]
        # Another run may have asked at other depths.
        rows = [row for row in rows if len(row["by_depth"]) == len(depths)]
        shares = [[exact / trials for _, exact, trials in row["by_depth"]] for row in rows]
        columns = list(zip(*shares, strict=True))
        image = axes.imshow(columns, aspect="auto", vmin=0, vmax=1, cmap="viridis")
        for y, column in enumerate(columns):
            for x, value in enumerate(column):
                color = "black" if value > 0.6 else "white"
                axes.text(x, y, f"{value:.0%}", ha="center", va="center", color=color, fontsize=8)
        axes.set_xticks(range(len(rows)), [short(row["tokens"]) for row in rows])
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set(title=f"Pass key: {name}", xlabel="tokens of the document", ylabel="depth")
    figure.colorbar(image, ax=figure.axes, label="exact answers", shrink=0.8)


def curves(figure: Any, lines: Mapping[str, Sequence[Row]], value: str, label: str) -> None:
    """One quantity against length, a line a system, both axes logarithmic."""
    from matplotlib.ticker import LogLocator

    axes = figure.subplots()
    for place, (name, rows) in enumerate(lines.items()):
        looks = OWN_STYLE if name == "samba" else style(place)
        axes.plot(
            [row["tokens"] for row in rows], [row[value] for row in rows], label=name, **looks
        )
    lengths = sorted({row["tokens"] for rows in lines.values() for row in rows})
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
    axes.set_xticks(lengths, [short(length) for length in lengths])
    values = [row[value] for rows in lines.values() for row in rows]
    if max(values) < 100 * min(values):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
