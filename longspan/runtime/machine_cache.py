"""What was measured once on this machine with these libraries, kept in the user's cache directory.

A small JSON file of numbers by key. Losing it costs a measurement, so a file that is damaged or
cannot be written is no error; it is replaced as a whole, so that no reader sees half of it.

    remember("baseline torch-cuda, NVIDIA H100, ...", 744488960)
    recall("baseline torch-cuda, NVIDIA H100, ...")     # 744488960, or None
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path


def cache_file() -> Path:
    """Where the numbers are: ``$XDG_CACHE_HOME`` or its like on other systems."""
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local"))
    elif sys.platform == "darwin":
        root = Path.home() / "Library/Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "longspan" / "measured.json"


def recall(key: str, file: Path | None = None) -> int | None:
    """The number of `key`, or None where there is none that can be read."""
    value = _numbers(file or cache_file()).get(key)
    return value if isinstance(value, int) and value >= 0 else None


def remember(key: str, value: int, file: Path | None = None) -> bool:
    """Keep a number; False where the file cannot be written."""
    file = file or cache_file()
    numbers = _numbers(file) | {key: value}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
        with os.fdopen(handle, "w", encoding="utf-8") as new:
            json.dump(numbers, new, indent=1)
        Path(name).replace(file)
    except OSError:
        return False
    return True


def _numbers(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
