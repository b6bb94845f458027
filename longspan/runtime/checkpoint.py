"""Checkpoints of a reading, so that an interrupted one goes on where it was.

A checkpoint is a `.span` file with the state between two chunks and the place in the text: the
start of the piece of text that holds the next token, and how many of its tokens are read. As the
pieces depend on the text alone, reading on gives the very same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from longspan.bundle import Manifest
from longspan.errors import BadInput, BadMemory
from longspan.runtime.memory import (
    DocumentRead,
    Origin,
    check_counters,
    check_origin,
    check_shapes,
    documents_of,
    span_facts,
    timestamp,
)
from longspan.runtime.span_file import read_arrays, read_header, write_span
from longspan.runtime.tokens import Place

KIND = "checkpoint"
DEFAULT_SECONDS = 30.0


def partial_path(memory: Path) -> Path:
    """Where the checkpoints of a reading lie that will be saved as `memory`."""
    return memory.with_name(f"{memory.name}.partial")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How far a document was read.

    Attributes:
        tokens: tokens of this document that are in the state.
        place: start of the piece of text that holds the next token.
        begun: tokens of that piece that are in the state.
        begun_sha256: hex SHA-256 of those tokens, little-endian int64.
    """

    tokens: int
    place: Place
    begun: int
    begun_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A state between two chunks, as in `Memory`, and how far it is."""

    state: Mapping[str, NDArray[Any]]
    reached: Reached


@dataclass(slots=True, kw_only=True)
class Keeper:
    """Writes the checkpoints of one reading.

    Args:
        path: where.
        seconds: time between two.
        origin: the model that reads.
        before: documents that were in the memory before.
    """

    path: Path
    seconds: float
    origin: Origin
    before: tuple[DocumentRead, ...]
    last: float = 0.0

    def __post_init__(self) -> None:
        """Start the clock."""
        self.last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self.last >= self.seconds

    def save(self, state: Mapping[str, NDArray[Any]], reached: Reached) -> None:
        """Write one, in one step.

        Raises:
            BadInput: it cannot be written.
        """
        facts = span_facts(self.origin, self.before) | {
            "created": timestamp(),
            "reached_tokens": str(reached.tokens),
            "reached_text_bytes": str(reached.place.text_bytes),
            "reached_text_sha256": reached.place.text_sha256,
            "reached_begun": str(reached.begun),
            "reached_begun_sha256": reached.begun_sha256,
        }
        write_span(self.path, kind=KIND, facts=facts, arrays=state)
        self.last = time.monotonic()

    def find(self, manifest: Manifest, on_notice: Callable[[str], None]) -> Checkpoint | None:
        """The checkpoint that lies there; None, and a notice, if it is another reading's.

        Raises:
            BadInput: the file is no checkpoint, or damaged; it is left as it is.
        """
        if not self.path.exists():
            return None
        header = read_header(self.path)
        if header.facts["kind"] != KIND:
            raise BadInput(
                f"{self.path} was named for checkpoints, and it is a {header.facts['kind']}; it "
                "would be lost. Name another file for checkpoints."
            )
        try:
            origin = Origin.from_facts(header.facts)
            check_origin("It", origin, manifest)
            check_shapes(header, manifest, extra={})
            state = read_arrays(header)
            check_counters(self.path, state, manifest)
        except BadMemory as error:
            on_notice(not_used(self.path, str(error)))
            return None
        if documents_of(header.facts) != self.before:
            on_notice(not_used(self.path, "It goes on from another memory."))
            return None
        return Checkpoint(state=state, reached=_reached(header.facts))

    def remove(self) -> None:
        """Remove it: the reading is done."""
        self.path.unlink(missing_ok=True)


def not_used(path: Path, reason: str) -> str:
    """What a person is told when a checkpoint cannot be used."""
    return f"The checkpoint {path} is not used, and reading starts at the beginning. {reason}"


def _reached(facts: Mapping[str, str]) -> Reached:
    place = Place(
        text_bytes=int(facts["reached_text_bytes"]), text_sha256=facts["reached_text_sha256"]
    )
    return Reached(
        tokens=int(facts["reached_tokens"]),
        place=place,
        begun=int(facts["reached_begun"]),
        begun_sha256=facts["reached_begun_sha256"],
    )
