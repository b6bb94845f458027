"""What the two projects' Mamba-2 configs have in common, checked once."""

from __future__ import annotations

import json
from math import inf
from typing import Any

from longspan.errors import BadCheckpoint

MAMBA2_TRAPS = """\
- `in_proj` has the rows [z, x, B, C, dt]; one convolution reads x, B and C together.
- The gate comes before the norm, and the norm has a mean square for each group.
- The recurrent state is [heads, state, width] here, [heads, width, state] there.
"""


def check_groups(heads: int, groups: int, *, where: str, keys: tuple[str, str]) -> None:
    """Check that every group serves the same number of heads.

    Args:
        heads: H.
        groups: G.
        where: what to call the config in a message.
        keys: the names of both in it.

    Raises:
        BadCheckpoint: G does not divide H.
    """
    if heads % groups:
        raise BadCheckpoint(
            f"{where} has {keys[0]} = {heads} and {keys[1]} = {groups}; the second must divide the "
            "first. Correct them."
        )


def step_limit(value: Any, *, where: str, key: str) -> tuple[float, float | None]:
    """The range of steps, with None for no upper limit.

    Args:
        value: None, or two numbers; transformers writes an infinite one as
            ``{"__float__": "Infinity"}``.
        where: what to call the config in a message.
        key: the name of the range in it.

    Raises:
        BadCheckpoint: `value` is no range from zero or more to something above its start.
    """
    if value is None:
        return 0.0, None
    ends = [_number(each) for each in value] if isinstance(value, list) else []
    low, high = ends if len(ends) == 2 else (None, None)
    if low is None or high is None or not 0 <= low < inf or not low < high:
        raise BadCheckpoint(
            f"{where} has {key} = {json.dumps(value)}; it must be two numbers, the least step, "
            "zero or more, and a larger one. Correct it."
        )
    return low, None if high == inf else high


def _number(value: Any) -> float | None:
    if isinstance(value, dict) and value == {"__float__": "Infinity"}:
        return inf
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None
