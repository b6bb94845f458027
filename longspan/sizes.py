"""Sizes as people write them: ``512MiB``, ``2GB``, bytes; ``8K``, ``256K``, ``1M`` tokens."""

from __future__ import annotations

import re
from decimal import Decimal

from longspan.errors import BadInput

_BYTE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_TOKEN_UNITS = {"": 1, "k": 2**10, "m": 2**20}


def parse_bytes(text: str | int) -> int:
    """Read a size in bytes: ``"512MiB"``, ``"2GB"``, ``"1.5 GiB"``, ``"1048576"`` or an int.

    Raises:
        BadInput: the text is no size, or the size is not positive.
    """
    return _parse(text, _BYTE_UNITS, what="size", examples="512MiB, 2GB, 1.5GiB or 1048576")


def parse_tokens(text: str | int) -> int:
    """Read a number of tokens: ``"8K"`` is 8,192; ``"1M"`` is 1,048,576; plain digits count one.

    Raises:
        BadInput: the text is no token count, or it is not positive.
    """
    return _parse(text, _TOKEN_UNITS, what="token count", examples="8K, 256K, 1M or 50000")


def _parse(text: str | int, units: dict[str, int], *, what: str, examples: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise BadInput(f"{str(text)!r} is not a {what}. Write it like {examples}.")
    value = int(Decimal(match[1]) * unit)
    if value <= 0:
        raise BadInput(f"The {what} {str(text)!r} is not positive. Write it like {examples}.")
    return value


def format_bytes(count: int) -> str:
    """A size for people, in binary units: ``612.0 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
