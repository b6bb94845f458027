"""The `.span` file: safetensors with a checksum over every byte. It knows nothing of models.

The header's metadata holds ``format``, ``version``, ``kind``, ``sha256`` and facts, all text. The
checksum is that of the whole file with its own 64 digits written as zeros, so any safetensors
reader opens the file, and no flipped byte goes unseen. Everything is little-endian.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from longspan.errors import BadInput, BadMemory
from longspan.runtime.new_file import why_unwritable

FORMAT = "longspan.span"
VERSION = 1
_ZEROS = "0" * 64
_BLOCK = 2**20
# safetensors' own limit
_HEADER_LIMIT = 100_000_000

_NAMES = {"float32": "F32", "float16": "F16", "int64": "I64", "uint16": "BF16"}
_DTYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanHeader:
    """What a `.span` file says of itself before its data.

    Attributes:
        path: where it lies.
        facts: the metadata.
        table: dtype and shape of every tensor by name, bfloat16 as uint16.
        offsets: where each tensor's bytes begin in the file.
    """

    path: Path
    facts: dict[str, str]
    table: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
    offsets: dict[str, int]


def write_span(path: Path, *, kind: str, facts: Mapping[str, str], arrays: Arrays) -> None:
    """Write a `.span` file in one step: `path` holds either what it held before, or all of it.

    Args:
        path: any name; its folder must exist. Of a link, the file that it names is written.
        kind: what the file is.
        facts: further metadata.
        arrays: float32, float16, int64, or bfloat16 as uint16.

    Raises:
        BadInput: the file cannot be written, or something that is no `.span` file lies there.
    """
    require_writable(path)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "kind": kind,
        "sha256": _ZEROS,
        **facts,
    }
    head = _header(metadata, arrays)
    try:
        with _replacing(path.resolve()) as file:
            hasher = hashlib.sha256(head)
            file.write(head)
            for array in arrays.values():
                data = _little_endian(array)
                file.write(data)
                hasher.update(data)
            file.seek(head.index(_digest_field(_ZEROS)))
            file.write(_digest_field(hasher.hexdigest()))
    except OSError as error:
        raise BadInput(
            f"{path} cannot be written: {error.strerror}. Choose a folder that exists, can be "
            "written to, and has space left."
        ) from error


def read_header(path: Path) -> SpanHeader:
    """Read and check a `.span` file's header, and its checksum over every byte.

    Raises:
        BadMemory: it is missing, no `.span` file, damaged, or written by a newer longspan.
    """
    try:
        with path.open("rb") as file:
            head = _read_head(path, file)
            header = _parse(path, head)
            _check_version(header)
            _check_digest(header, head, file)
            return header
    except OSError as error:
        raise BadMemory(
            f"The memory {path} cannot be read: {error.strerror}. Check the name, or make one "
            "with: longspan read BUNDLE DOCUMENT --out FILE.span"
        ) from error


def read_arrays(header: SpanHeader) -> dict[str, NDArray[Any]]:
    """The tensors of a file whose header was checked."""
    arrays: dict[str, NDArray[Any]] = {}
    with header.path.open("rb") as file:
        for name, (dtype, shape) in header.table.items():
            file.seek(header.offsets[name])
            array = np.empty(shape, dtype.newbyteorder("<"))
            file.readinto(array.reshape(-1).view(np.uint8).data)
            arrays[name] = array.astype(dtype, copy=False)
    return arrays


def require_writable(path: Path) -> None:
    """Check, before long work, that a `.span` file can be written at `path`, and loses no other.

    Raises:
        BadInput: its folder is missing or cannot be written to, or `path` is a folder, a device, or
            a file that is neither empty nor a `.span` file.
    """
    found = why_unwritable(path, path.resolve().parent) or (
        "it is a device or a pipe, and no file" if path.exists() and not path.is_file()
        else "a file that is no memory lies there, and would be lost" if _holds_other(path)
        else None
    )  # fmt: skip
    if found:
        raise BadInput(f"{path} cannot be written: {found}. Name another file.")


def _holds_other(path: Path) -> bool:
    """Whether a file lies there that is neither empty nor a `.span` file, damaged or not."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    try:
        with path.open("rb") as file:
            _parse(path, _read_head(path, file))
    except (BadMemory, OSError):
        return True
    return False


def _header(metadata: Mapping[str, str], arrays: Arrays) -> bytes:
    """The length of the header, 8 bytes, and its JSON, padded to a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, array in arrays.items():
        entries[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest_field(digest: str) -> bytes:
    return f'"sha256":"{digest}"'.encode()


def _little_endian(array: NDArray[Any]) -> memoryview:
    ordered = np.ascontiguousarray(array)
    if sys.byteorder == "big":
        ordered = ordered.byteswap()
    return ordered.reshape(-1).view(np.uint8).data


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that takes its place, flushed to disk, if all goes well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_head(path: Path, file: BinaryIO) -> bytes:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    left = os.fstat(file.fileno()).st_size - 8
    if len(start) < 8 or length > min(left, _HEADER_LIMIT):
        raise _no_span(path, "it is too short for the header that it announces")
    return start + file.read(length)


def _parse(path: Path, head: bytes) -> SpanHeader:
    try:
        entries = json.loads(head[8:])
        facts = entries.pop("__metadata__")
        if facts["format"] != FORMAT:
            raise _no_span(path, f"its format is {facts['format']!r}")
        table = {
            name: (_DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"]))
            for name, entry in entries.items()
        }
        offsets = {name: len(head) + int(e["data_offsets"][0]) for name, e in entries.items()}
        facts = {str(key): str(value) for key, value in facts.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _no_span(path, f"its header cannot be read ({type(error).__name__})") from error
    return SpanHeader(path=path, facts=facts, table=table, offsets=offsets)


def _check_version(header: SpanHeader) -> None:
    version = header.facts.get("version", "")
    if not version.isdecimal() or int(version) > VERSION:
        raise BadMemory(
            f"The memory {header.path} has version {version}; this longspan reads up to "
            f"{VERSION}. Update longspan, or read the document again with this one."
        )


def _check_digest(header: SpanHeader, head: bytes, file: BinaryIO) -> None:
    digest = header.facts.get("sha256", "")
    hasher = hashlib.sha256(head.replace(_digest_field(digest), _digest_field(_ZEROS), 1))
    length = len(head)
    while block := file.read(_BLOCK):
        hasher.update(block)
        length += len(block)
    if hasher.hexdigest() != digest or length != _expected_length(header, len(head)):
        raise BadMemory(
            f"The memory {header.path} is damaged: its {length:,} bytes do not match the checksum "
            "in its header. Copy it again, or read the document again."
        )


def _expected_length(header: SpanHeader, head_bytes: int) -> int:
    return head_bytes + sum(math.prod(s) * d.itemsize for d, s in header.table.values())


def _no_span(path: Path, found: str) -> BadMemory:
    return BadMemory(
        f"{path} is no memory: {found}. A memory is a .span file, which is made with: "
        "longspan read BUNDLE DOCUMENT --out FILE.span"
    )
