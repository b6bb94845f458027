"""Whether a file can be written somewhere, asked before long work."""

from __future__ import annotations

import os
from pathlib import Path


def why_unwritable(path: Path, folder: Path) -> str | None:
    """Why no file can be written at `path`, which lies in `folder`; None where one can."""
    return (
        "it is a folder" if path.is_dir()
        else f"there is no folder {folder}" if not folder.is_dir()
        else f"the folder {folder} cannot be written to" if not os.access(folder, os.W_OK)
        else None
    )  # fmt: skip
