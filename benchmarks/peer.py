"""What a peer of a kernel is, and how it is found on this machine.

    module = import_inside("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm")

Nothing is fetched. A package whose own `__init__` needs an extension that was not built is passed
by.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from kernel_case import Inputs, Outputs

Prepared = Callable[[], Outputs]


class PeerMissing(Exception):
    """The peer is not installed, or not made for what was asked; the message says which."""


def unchanged(inputs: Inputs, outputs: Outputs) -> Outputs:
    """The outputs as they are."""
    del inputs
    return outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another implementation of one op.

    Attributes:
        name: in the tables.
        prepare: the call, for the inputs of a `Case`.
        finish: its outputs in the order and layout of the case's; a state may be missing.
        same: whether it computes the same function, so that its error means something.
    """

    name: str
    prepare: Callable[[Inputs], Prepared]
    finish: Callable[[Inputs, Outputs], Outputs] = unchanged
    same: bool = True


def import_inside(module: str, *passed_by: str) -> ModuleType:
    """Import `module` without running the `__init__` of the packages `passed_by`.

    Raises:
        PeerMissing: it is not on the path, or something that it imports is not.
    """
    for package in passed_by:
        if package in sys.modules:
            continue
        folder = Path(*package.split("."))
        found = [str(Path(place) / folder) for place in sys.path if (Path(place) / folder).is_dir()]
        if not found:
            raise PeerMissing(f"{package} is not installed")
        empty = ModuleType(package)
        empty.__path__ = found
        sys.modules[package] = empty
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PeerMissing(f"{module} cannot be imported: {error}") from error
