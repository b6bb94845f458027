"""What `export_bundle` did, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longspan.export.anchors import AnchorReport
from longspan.export.calibrate import Calibration
from longspan.models.config import Quantization
from longspan.runtime.verify import Check
from longspan.sizes import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written.

    Attributes:
        bundle: the bundle's folder.
        family: the checkpoint's family.
        parameters: how many numbers the model has.
        weight_bytes: bytes of all weights.
        state_bytes: bytes of one sequence's state, caches aside.
        cache_entry_bytes: bytes that an entry adds to the caches; 0 for a state of fixed size.
        checks: how well the engines of this machine agree.
        anchors: what stands for closed segments; None where every layer keeps what it keeps.
        quantization: how the matrices are stored; None where they are not quantised.
        calibration: what that costs on a text; None where there is none.
    """

    bundle: Path
    family: str
    parameters: int
    weight_bytes: int
    state_bytes: int
    cache_entry_bytes: int
    checks: tuple[Check, ...]
    anchors: AnchorReport | None = None
    quantization: Quantization | None = None
    calibration: Calibration | None = None

    def text(self) -> str:
        """The report for people."""
        first = (
            f"{self.bundle}: {self.family}, {self.parameters:,} parameters, "
            f"{format_bytes(self.weight_bytes)} of weights, "
            f"{format_bytes(self.state_bytes)} of state"
        )
        if self.cache_entry_bytes:
            entry = "a token" if self.anchors is None else "an entry"
            first += f", {format_bytes(self.cache_entry_bytes)} of cache {entry}"
        anchors = () if self.anchors is None else (self.anchors.text(),)
        cost = () if self.calibration is None else (self.calibration.line(),)
        return "\n".join([first, *anchors, *cost, *(check.text() for check in self.checks)])
