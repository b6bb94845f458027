"""A memory: what reading leaves behind, and its `.span` file. No backend, no tokenizer.

memory.save(Path("book.span"))
memory = load_memory(Path("book.span"), manifest)     # of the same model, or refused by name
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from longspan.bundle import BYTES, Manifest
from longspan.engines import Engine
from longspan.errors import BadMemory
from longspan.runtime.documents import DocumentRange
from longspan.runtime.span_file import SpanHeader, read_arrays, read_header, write_span
from longspan.tensors import DType
from longspan.version import __version__

KIND = "memory"
LOGITS = "last_logits"
_HOST_DTYPES: dict[DType, str] = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "uint16",
    "int64": "int64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRead:
    """A document that was read.

    Attributes:
        name: what messages call it.
        sha256: hex SHA-256 of its text.
        bytes: UTF-8 bytes of its text; `tokens`, where a token is a byte.
        tokens: how many it is.
        parts: where each document stands in it that was read as a part of it.
    """

    name: str
    sha256: str
    bytes: int
    tokens: int
    parts: tuple[DocumentRange, ...] = ()

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> DocumentRead:
        """Read what `asdict` made of one, or of one before there were parts."""
        parts = tuple(DocumentRange(**part) for part in facts.get("parts", ()))
        return cls(**{**facts, "parts": parts})


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a state belongs to.

    Attributes:
        model: fingerprint of config and weights.
        family: the model's family, for people.
        tokenizer: fingerprint of the tokenizer, or None for a bundle without one.
        engine: what computed it.
    """

    model: str
    family: str
    tokenizer: str | None
    engine: Engine

    @classmethod
    def of(cls, manifest: Manifest, engine: Engine) -> Origin:
        """The origin of what `engine` computes with the bundle of `manifest`."""
        return cls(
            model=manifest.model_fingerprint(),
            family=manifest.config.family,
            tokenizer=manifest.tokenizer_fingerprint(),
            engine=engine,
        )

    def to_facts(self) -> dict[str, str]:
        """Metadata of a `.span` file that `from_facts` reads back."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_facts(cls, facts: Mapping[str, str]) -> Origin:
        """Read what `to_facts` wrote."""
        return cls(
            model=facts["model"],
            family=facts["family"],
            tokenizer=facts.get("tokenizer"),
            engine=cast(Engine, facts["engine"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Memory:
    """What reading leaves behind; asking never changes it.

    Attributes:
        state: every state tensor by name, in host memory; bfloat16 as uint16 with the same bits.
        last_logits: float32 [V], for the token after the last that was read.
        documents: what was read, in order.
        origin: the model that it belongs to.
        created: when, as ISO 8601 in UTC.
    """

    state: Mapping[str, NDArray[Any]]
    last_logits: NDArray[np.float32]
    documents: tuple[DocumentRead, ...]
    origin: Origin
    created: str

    @property
    def tokens(self) -> int:
        """Tokens that were read."""
        return sum(document.tokens for document in self.documents)

    @property
    def byte_tokens(self) -> bool:
        """Whether a token is a byte, and so a position a byte offset."""
        return self.origin.tokenizer == BYTES

    @property
    def ranges(self) -> tuple[DocumentRange, ...]:
        """Where each document stands in all the text that was read, one after another.

        Of token ids that were read as such, the text is the ids: 8 bytes each, or the bytes
        themselves where all of the model's tokens are bytes.
        """
        found: list[DocumentRange] = []
        start = 0
        for read in self.documents:
            whole = DocumentRange(name=read.name, first_byte=0, end_byte=read.bytes)
            found += [part.moved(start) for part in read.parts or (whole,)]
            start += read.bytes
        return tuple(found)

    @property
    def nbytes(self) -> int:
        """Bytes of the state and the logits."""
        return sum(array.nbytes for array in self.state.values()) + self.last_logits.nbytes

    def save(self, path: str | Path) -> None:
        """Write the memory to `path`, in one step; a `.span` file by custom.

        Raises:
            BadInput: the file cannot be written.
        """
        write_span(
            Path(path),
            kind=KIND,
            facts=span_facts(self.origin, self.documents) | {"created": self.created},
            arrays={**self.state, LOGITS: self.last_logits},
        )


def load_memory(path: str | Path, manifest: Manifest) -> Memory:
    """Read a memory for the model of `manifest`; everything is checked before it is used.

    Raises:
        BadMemory: the file is missing, no memory, damaged, newer, or of another model or
            tokenizer.
    """
    header = _checked_header(path, manifest)
    arrays = read_arrays(header)
    check_counters(header.path, arrays, manifest)
    return Memory(
        last_logits=arrays.pop(LOGITS),
        state=arrays,
        documents=documents_of(header.facts),
        origin=Origin.from_facts(header.facts),
        created=header.facts["created"],
    )


def _checked_header(path: str | Path, manifest: Manifest) -> SpanHeader:
    """The header of a memory for the model of `manifest`, checked."""
    header = read_header(Path(path))
    if header.facts["kind"] != KIND:
        raise BadMemory(
            f"{path} is no memory but the {header.facts['kind']} of a reading that was "
            "interrupted. Read the same document again to finish it: it goes on from there."
        )
    check_origin(f"The memory {path}", Origin.from_facts(header.facts), manifest)
    check_shapes(header, manifest, extra={LOGITS: (manifest.config.vocab_size,)})
    return header


def describe(path: str | Path) -> dict[str, Any]:
    """What a `.span` file is, for people, without its model.

    Raises:
        BadMemory: the file is missing, no `.span` file, damaged, or newer.
    """
    facts = read_header(Path(path)).facts
    documents = documents_of(facts)
    return {
        "kind": facts["kind"],
        "format_version": int(facts["version"]),
        "family": facts["family"],
        "model": facts["model"],
        "tokenizer": facts.get("tokenizer"),
        "engine": facts["engine"],
        "tokens": sum(each.tokens for each in documents) + int(facts.get("reached_tokens", 0)),
        "documents": [asdict(document) for document in documents],
        "created": facts["created"],
        "longspan": facts["longspan"],
        "bytes": Path(path).stat().st_size,
    }


def timestamp() -> str:
    """Now, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def span_facts(origin: Origin, documents: tuple[DocumentRead, ...]) -> dict[str, str]:
    """Metadata of a `.span` file that `check_origin` and `documents_of` read back."""
    return origin.to_facts() | {
        "longspan": __version__,
        "documents": json.dumps([asdict(document) for document in documents]),
    }


def documents_of(facts: Mapping[str, str]) -> tuple[DocumentRead, ...]:
    """The documents that `span_facts` wrote down."""
    return tuple(DocumentRead.from_facts(item) for item in json.loads(facts["documents"]))


def check_memory(memory: Memory, manifest: Manifest) -> None:
    """Check that a caller's memory is one, of the model and the tokenizer of `manifest`.

    Raises:
        BadMemory: it is not.
    """
    if not isinstance(memory, Memory):
        raise BadMemory(
            f"A memory was expected, and found {memory!r:.80}. Read a document with runtime.read, "
            "or open a .span file with runtime.open."
        )
    check_origin("This memory", memory.origin, manifest)


def check_origin(what: str, origin: Origin, manifest: Manifest) -> None:
    """Check that a state belongs to the model and the tokenizer of `manifest`.

    Args:
        what: what messages call it.
        origin: where it comes from.
        manifest: of the bundle that is to go on with it.

    Raises:
        BadMemory: it does not belong to it.
    """
    model, tokenizer = manifest.model_fingerprint(), manifest.tokenizer_fingerprint()
    if origin.model != model:
        raise BadMemory(
            f"{what} belongs to the {origin.family} model {origin.model[:12]}, and this bundle "
            f"is the {manifest.config.family} model {model[:12]}. A memory goes on only with the "
            "model that wrote it. Load that model's bundle, or read the document again with "
            "this one."
        )
    if origin.tokenizer != tokenizer:
        raise BadMemory(
            f"{what} was read with the tokenizer {_short(origin.tokenizer)}, and this bundle has "
            f"{_short(tokenizer)}. The same text would be other tokens. Load the bundle that "
            "wrote it, or read the document again with this one."
        )


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]


def check_shapes(
    header: SpanHeader, manifest: Manifest, *, extra: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that a file holds the state of `manifest` and the float32 tensors `extra`, no more.

    Caches may have any number of entries, those with the same counter the same number.

    Raises:
        BadMemory: a tensor is missing, unknown, or has another shape or dtype.
    """
    found = {name: (dtype.name, shape) for name, (dtype, shape) in header.table.items()}
    in_use = _entries(header, manifest)
    wanted = {
        spec.name: (_HOST_DTYPES[spec.dtype], spec.with_capacity(in_use.get(spec.name, 0)).shape)
        for spec in manifest.state
    }
    wanted |= {name: ("float32", shape) for name, shape in extra.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise BadMemory(
                f"The memory {header.path} does not hold this model's state: {name} is "
                f"{_tensor(found.get(name), 'missing')}, and the bundle has "
                f"{_tensor(wanted.get(name), 'no such tensor')}. "
                "Read the document again with this bundle."
            )


def _entries(header: SpanHeader, manifest: Manifest) -> dict[str, int]:
    """Entries of each cache: as many as the first one with its counter has in the file."""
    found: dict[str, int] = {}
    caches = [(spec.name, spec.counter) for spec in manifest.state if spec.counter is not None]
    for name, counter in caches:
        _, shape = header.table.get(name, (None, ()))
        if len(shape) > 1:
            found.setdefault(counter, shape[1])
    return {name: found.get(counter, 0) for name, counter in caches}


def check_counters(path: Path, state: Mapping[str, NDArray[Any]], manifest: Manifest) -> None:
    """Check that each cache of a file that was read has as many entries as its counter says.

    Raises:
        BadMemory: one has not.
    """
    for spec in manifest.state:
        if spec.counter is None:
            continue
        entries, said = state[spec.name].shape[1], int(state[spec.counter][0])
        if entries != said:
            raise BadMemory(
                f"The memory {path} contradicts itself: {spec.name} has {entries:,} entries, and "
                f"{spec.counter} says {said:,}. Read the document again with this bundle."
            )


def entries_of(path: str | Path, manifest: Manifest) -> int:
    """Entries that a memory takes in each cache, without reading its arrays.

    Raises:
        BadMemory: as `load_memory` does.
    """
    header = _checked_header(path, manifest)
    return max(_entries(header, manifest).values(), default=0)


def _tensor(facts: tuple[str, tuple[int, ...]] | None, absent: str) -> str:
    return absent if facts is None else f"{facts[0]} {list(facts[1])}"
