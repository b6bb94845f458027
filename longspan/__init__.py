"""longspan reads any length of text in a fixed amount of memory.

    import longspan

    runtime = longspan.load("builtin", budget="256MiB")
    memory = runtime.read("book.txt")
    for piece in runtime.ask(memory, "What is the pass key?"):
        print(piece, end="")

Importing this module loads nothing heavy: each name is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from longspan.errors import (
    BadBundle,
    BadCheckpoint,
    BadDocument,
    BadInput,
    BadMemory,
    BudgetExceeded,
    DoesNotFit,
    LongspanError,
    MissingExtra,
    VerificationFailed,
)
from longspan.version import __version__

if TYPE_CHECKING:
    from longspan.builtin import builtin_bundle
    from longspan.export import export_bundle
    from longspan.runtime.asking import Answer
    from longspan.runtime.budget import Budget
    from longspan.runtime.memory import Memory
    from longspan.runtime.runtime import Runtime, load

__all__ = [
    "Answer",
    "BadBundle",
    "BadCheckpoint",
    "BadDocument",
    "BadInput",
    "BadMemory",
    "Budget",
    "BudgetExceeded",
    "DoesNotFit",
    "LongspanError",
    "Memory",
    "MissingExtra",
    "Runtime",
    "VerificationFailed",
    "__version__",
    "builtin_bundle",
    "export_bundle",
    "load",
]

_HOMES = {
    "Answer": "longspan.runtime.asking",
    "Budget": "longspan.runtime.budget",
    "Memory": "longspan.runtime.memory",
    "Runtime": "longspan.runtime.runtime",
    "builtin_bundle": "longspan.builtin",
    "export_bundle": "longspan.export",
    "load": "longspan.runtime.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'longspan' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
