"""Where the tensors of a safetensors file lie in it, from its header alone.

for tensor in stored_tensors(path): print(tensor.name, tensor.shape, tensor.nbytes)
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from longspan.tensors import STORED_NAMES, DType

_DTYPES = {name: dtype for dtype, name in STORED_NAMES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of a file.

    Attributes:
        name: its name.
        dtype: of its numbers.
        shape: its shape.
        offset: of its first byte in the file.
        nbytes: that it takes.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def stored_tensors(path: Path) -> list[StoredTensor]:
    """The tensors of a bundle's safetensors file: 8 bytes of length, a header in JSON, and data."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return [
        StoredTensor(
            name=name,
            dtype=_DTYPES[entry["dtype"]],
            shape=tuple(entry["shape"]),
            offset=8 + length + entry["data_offsets"][0],
            nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    ]
