"""What `longspan measure` shows: the runs, planned beside measured, and another program's.

print_measurement(measurement, None, json=False)
"""

from __future__ import annotations

from longspan import render
from longspan.runtime.against import COLUMNS, Against
from longspan.runtime.measure import PART_COLUMNS, Measurement


def print_measurement(measurement: Measurement, other: Against | None, *, json: bool) -> None:
    """Print a measurement, and what another program did, as tables or as one JSON object."""
    if json:
        facts = render.plain(measurement)
        render.print_json(facts if other is None else facts | {"against": other})
        return
    render.print_table(measurement.columns(), measurement.rows(), title=measurement.title())
    render.print_table(
        PART_COLUMNS, measurement.part_rows(), title="planned / measured MiB, stage by stage"
    )
    if other is not None and other.skipped is not None:
        render.notice(f"{other.program} was skipped: {other.skipped}.")
    elif other is not None:
        render.print_table(COLUMNS, other.rows(), title=other.program)
