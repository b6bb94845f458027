"""The memory limit that a container or service puts on this process, on Linux.

free_bytes()     # what the nearest limit leaves, or None where there is no limit
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Files of (limit, used, name in memory.stat of cache that can be given back).
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
# Version 1 writes "no limit" as the largest multiple of a page below 2^63.
_NO_LIMIT = 2**62


def free_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take under its control groups, or None without a limit.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    left = [
        value for folder, files in _folders(root) if (value := _left(folder, files)) is not None
    ]
    return min(left, default=None)


def total_bytes(root: Path = Path("/")) -> int | None:
    """The smallest limit on this process, or None without a limit."""
    limits = [
        value
        for folder, (limit, *_) in _folders(root)
        if (value := _number(folder / limit)) is not None and value < _NO_LIMIT
    ]
    return min(limits, default=None)


def _folders(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """This process's groups and all above them: a limit of any of them holds."""
    table = root / "proc/self/cgroup"
    for line in table.read_text().splitlines() if table.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, files = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            mount, files = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        relative = Path(path.lstrip("/"))
        for part in (relative, *relative.parents):
            yield mount / part, files


def _left(folder: Path, files: tuple[str, str, str]) -> int | None:
    limit, used = _number(folder / files[0]), _number(folder / files[1])
    if limit is None or used is None or limit >= _NO_LIMIT:
        return None
    return max(0, limit - used + _reclaimable(folder / "memory.stat", files[2]))


def _reclaimable(stat: Path, name: str) -> int:
    for line in stat.read_text().splitlines() if stat.is_file() else ():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    text = file.read_text().strip() if file.is_file() else "max"
    return None if text == "max" else int(text)
