"""What `longspan plan` shows: the items under the budget, why each choice was made, what would fit.

print_plan(plan, explain=True)
"""

from __future__ import annotations

from collections.abc import Iterator

from longspan import render
from longspan.runtime.plan import Plan
from longspan.sizes import format_bytes

BAR_CELLS = 32


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
    before = 0
    for item in plan.items:
        bar = budget_bar(plan, before, before + item.bytes)
        yield item.name, format_bytes(item.bytes), bar
        before += item.bytes
    bar = budget_bar(plan, 0, before)
    yield "together", format_bytes(before), bar


def budget_bar(plan: Plan, start_bytes: int, end_bytes: int) -> str:
    """Bytes from start to end as cells of a line; the budget ends at ``|``."""
    whole = max(plan.budget_bytes, plan.total_bytes)
    first, last = (count * BAR_CELLS // whole for count in (start_bytes, end_bytes))
    first = min(first, BAR_CELLS - 1)
    cells = (" " * first + "█" * max(1, last - first)).ljust(BAR_CELLS)
    budget = plan.budget_bytes * BAR_CELLS // whole
    return f"{cells[:budget]}|{cells[budget:]}".rstrip()
