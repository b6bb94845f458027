"""The model that ships in the package: a small Samba that recalls what a long text says once.

docs/builtin.md says how it was trained. The folder `bundle` beside this file is an ordinary bundle;
`training.json` tells what it was trained on, and which tasks it answers.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from longspan.tasks import TASKS, Task

TRAINING = "training.json"


def builtin_bundle() -> Path:
    """The folder of the bundle that ships in the package."""
    return Path(str(files("longspan.builtin"))) / "bundle"


def builtin_tasks() -> tuple[Task, ...]:
    """What the bundle that ships answers."""
    text = (files("longspan.builtin") / TRAINING).read_text(encoding="utf-8")
    answers = json.loads(text)["answers"]
    return tuple(task for task in TASKS if task in answers)


def named_bundle(path: Path) -> Path:
    """The folder that a person names: ``builtin`` is the bundle that ships, unless it is a path."""
    return builtin_bundle() if str(path) == "builtin" and not path.exists() else path
