"""What `longspan plan` shows: the items under the budget, why each choice was made, what would fit.

print_plan(plan, explain=True)
"""

from __future__ import annotations

from collections.abc import Iterator

from longspan import render
from longspan.runtime.plan import Plan
from longspan.sizes import format_bytes

BAR_CELLS = 32
LEAST_BAR_CELLS = 8
# Between the columns of the table, and the mark of the budget.
_GAPS = 5


def print_plan(plan: Plan, *, explain: bool = False, fit: bool = False) -> None:
    """Print the items as a table with a bar, or with `fit` the least and the most alone."""
    if fit:
        render.out().print(plan.fit_text(), markup=False)
    else:
        render.print_table(("item", ">", "of the budget"), _rows(plan))
        render.out().print(plan.summary(), markup=False)
    if explain:
        render.print_table(
            ("choice", "made", "because"),
            [(choice.what, choice.chosen, choice.why) for choice in plan.choices],
        )
        render.print_table(
            ("item", "its bytes are"), [(item.name, item.source) for item in plan.items]
        )


def _rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """A row an item, whose bar goes on where the one before ended; then the sum."""
    figures = [(item.name, format_bytes(item.bytes)) for item in plan.items]
    used = sum(max(len(row[column]) for row in figures) for column in (0, 1))
    console = render.out()
    cells = max(LEAST_BAR_CELLS, min(BAR_CELLS, console.width - used - _GAPS))
    mark = "#" if console.options.ascii_only else "█"
    before = 0
    for (name, figure), item in zip(figures, plan.items, strict=True):
        bar = budget_bar(plan, before, before + item.bytes, cells=cells, mark=mark)
        yield name, figure, bar
        before += item.bytes
    yield "together", format_bytes(before), budget_bar(plan, 0, before, cells=cells, mark=mark)


def budget_bar(
    plan: Plan, start_bytes: int, end_bytes: int, *, cells: int = BAR_CELLS, mark: str = "█"
) -> str:
    """Bytes from start to end as marks on a line of `cells`; the budget ends at ``|``."""
    whole = max(plan.budget_bytes, plan.total_bytes)
    first, last = (count * cells // whole for count in (start_bytes, end_bytes))
    first = min(first, cells - 1)
    line = (" " * first + mark * max(1, last - first)).ljust(cells)
    budget = plan.budget_bytes * cells // whole
    return f"{line[:budget]}|{line[budget:]}".rstrip()
