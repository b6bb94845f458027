"""The model that ships in the package: a small Samba that recalls a pass key.

docs/builtin.md says how it was trained. The folder `bundle` beside this file is an ordinary bundle.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def builtin_bundle() -> Path:
    """The folder of the bundle that ships in the package."""
    return Path(str(files("longspan.builtin"))) / "bundle"


def named_bundle(path: Path) -> Path:
    """The folder that a person names: ``builtin`` is the bundle that ships, unless it is a path."""
    return builtin_bundle() if str(path) == "builtin" and not path.exists() else path
