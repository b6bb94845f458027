"""A measurement as a picture: memory and speed against length, the plan beside the peak.

draw(measure_bundle("bundle/", [8192, 65536], budget=["1GiB", "2GiB"]), Path("memory.png"))
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longspan.errors import BadInput, MissingExtra
from longspan.runtime.measure import Measurement, Run
from longspan.runtime.new_file import why_unwritable

MIB = 2**20


def require_drawable(path: Path) -> None:
    """Check, before hours of measuring, that a plot can be drawn and written.

    Raises:
        MissingExtra: matplotlib is not installed.
        BadInput: there is no such folder, or it is none for a PNG.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtra(needed_for="Drawing a plot", package="matplotlib", extra="plot")
    found = why_unwritable(path, path.parent)
    if found is None and path.suffix.lower() != ".png":
        found = "its name does not end with .png"
    if found:
        raise BadInput(f"The plot {path} cannot be written: {found}. Name another file.")


def draw(measurement: Measurement, path: Path) -> None:
    """Draw memory under the budgets' lines, each plan beside its peak, and speeds, as a PNG.

    Raises:
        MissingExtra, BadInput: as `require_drawable` does, or the file cannot be written after all.
    """
    require_drawable(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    figure.suptitle(measurement.title())
    (memory, plan), (length, budget) = figure.subplots(2, 2)
    _draw_memory(memory, measurement)
    _draw_plans(plan, measurement)
    _draw_speeds(length, measurement)
    _draw_budgets(budget, measurement)
    for axes in (memory, length, budget):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise BadInput(
            f"The plot {path} cannot be written: {error.strerror}. Name another file."
        ) from error


def _by_budget(measurement: Measurement) -> dict[int, list[Run]]:
    return {
        each: [run for run in measurement.runs if run.budget_bytes == each]
        for each in measurement.budgets
    }


def _draw_memory(axes: Any, measurement: Measurement) -> None:
    for budget, runs in _by_budget(measurement).items():
        lengths = [run.tokens for run in runs]
        (line,) = axes.plot(
            lengths, [run.peak_bytes / MIB for run in runs], "o-",
            label=f"peak within {budget / MIB:,.0f} MiB",
        )  # fmt: skip
        axes.plot(
            lengths, [run.planned_bytes / MIB for run in runs], "s--", color=line.get_color(),
            label="planned",
        )  # fmt: skip
        axes.axhline(budget / MIB, color=line.get_color(), linewidth=2, label="budget")
    axes.set(ylabel="MiB of the whole process", xlabel="tokens read")
    axes.set_ylim(0, 1.1 * measurement.budget_bytes / MIB)
    _token_ticks(axes, measurement)


def _draw_plans(axes: Any, measurement: Measurement) -> None:
    """For each budget, at its last length, the plan's items on each other beside the peak."""
    items: dict[str, Any] = {}
    for at, runs in enumerate(_by_budget(measurement).values()):
        below = 0.0
        for number, item in enumerate(runs[-1].plan["items"]):
            height = item["bytes"] / MIB
            items[item["name"]] = axes.bar(
                at - 0.2, height, 0.36, bottom=below, color=f"C{number % 10}"
            )
            below += height
        items["peak"] = axes.bar(at + 0.2, runs[-1].peak_bytes / MIB, 0.36, color="black")
    budgets = [f"{budget / MIB:,.0f} MiB" for budget in measurement.budgets]
    axes.set_xticks(range(len(budgets)), budgets)
    axes.set(ylabel="MiB", xlabel="budget: the plan beside the measured peak")
    axes.legend(items.values(), items.keys(), fontsize="x-small")


def _draw_speeds(axes: Any, measurement: Measurement) -> None:
    for budget, runs in _by_budget(measurement).items():
        lengths = [run.tokens for run in runs]
        (line,) = axes.plot(
            lengths, [run.prefill_tokens_per_second for run in runs], "o-",
            label=f"reading within {budget / MIB:,.0f} MiB",
        )  # fmt: skip
        axes.plot(
            lengths, [run.decode_tokens_per_second for run in runs], "s--",
            color=line.get_color(), label="one token a step",
        )  # fmt: skip
    axes.set(xlabel="tokens read", ylabel="tokens a second", yscale="log")
    _token_ticks(axes, measurement)


def _draw_budgets(axes: Any, measurement: Measurement) -> None:
    for tokens in dict.fromkeys(run.tokens for run in measurement.runs):
        runs = [run for run in measurement.runs if run.tokens == tokens]
        axes.plot(
            [run.budget_bytes / MIB for run in runs],
            [run.prefill_tokens_per_second for run in runs],
            "o-",
            label=f"reading {tokens:,} tokens",
        )
    axes.set(xlabel="budget, MiB", ylabel="tokens a second", ylim=(0, None))


def _token_ticks(axes: Any, measurement: Measurement) -> None:
    lengths = sorted({run.tokens for run in measurement.runs})
    axes.set(xscale="log")
    axes.set_xticks(
        lengths, [f"{n // 1024}K" if n % 1024 == 0 else f"{n}" for n in lengths], minor=False
    )
    axes.minorticks_off()
