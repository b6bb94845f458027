"""`model.safetensors`, written one tensor at a time: the header first, then the data.

The data starts at a multiple of 64 bytes, and tensors whose size is a multiple of 64 come first, so
that what is large can be mapped and used where it lies. Knows nothing of what a tensor is for.

    ranges = write_safetensors(path, specs, checkpoint.read)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from longspan.errors import BadInput
from longspan.tensors import STORED_NAMES, TensorSpec

ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """Where a tensor lies in a file, in bytes."""

    offset: int
    length: int


def file_layout(specs: Iterable[TensorSpec]) -> tuple[bytes, dict[str, ByteRange]]:
    """The header of a safetensors file, and where each tensor will lie.

    Args:
        specs: names, shapes and dtypes.

    Returns:
        The file's first bytes, a multiple of 64 long, and the range of each tensor in the file, in
        the order of the data.
    """
    ordered = sorted(specs, key=lambda spec: (-_alignment(spec.nbytes), spec.name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in ordered:
        entries[spec.name] = {
            "dtype": STORED_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = struct.pack("<Q", len(text)) + text
    ranges, start = {}, len(header)
    for spec in ordered:
        ranges[spec.name] = ByteRange(offset=start, length=spec.nbytes)
        start += spec.nbytes
    return header, ranges


def write_safetensors(
    path: Path,
    specs: Iterable[TensorSpec],
    read: Callable[[str], torch.Tensor],
) -> dict[str, ByteRange]:
    """Write tensors that `read` gives by name, each converted to the dtype of its spec.

    Args:
        path: the file to write.
        specs: names, shapes and dtypes.
        read: gives one tensor by name, on the CPU.

    Returns:
        The range of each tensor in the file.

    Raises:
        BadInput: a finite value does not fit the dtype.
    """
    by_name = {spec.name: spec for spec in specs}
    header, ranges = file_layout(by_name.values())
    with path.open("wb") as file:
        file.write(header)
        for name in ranges:
            tensor = _converted(name, read(name), by_name[name])
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    _check_readable(path, by_name)
    return ranges


def _alignment(size_bytes: int) -> int:
    """The largest power of two, at most 64, that divides the size."""
    return min(size_bytes & -size_bytes, ALIGNMENT)


def _converted(name: str, tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    assert tuple(tensor.shape) == spec.shape, f"{name}: {tuple(tensor.shape)} is not {spec.shape}"
    result = tensor.detach().to(getattr(torch, spec.dtype)).contiguous()
    if spec.dtype == "float16":
        _check_range(name, tensor, result)
    return result


def _check_range(name: str, tensor: torch.Tensor, halved: torch.Tensor) -> None:
    """Refuse a finite value that float16 made infinite."""
    lost = tensor[torch.isfinite(tensor) & ~torch.isfinite(halved)]
    if lost.numel():
        raise BadInput(
            f"float16 was asked for, and {name} holds {float(lost.abs().max()):.3g}. float16 "
            "ends at 65504. Export with weights='bfloat16' (--weights bfloat16) or 'float32'."
        )


def _check_readable(path: Path, specs: Mapping[str, TensorSpec]) -> None:
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(part.get_shape()) for name, part in found.items()}
    wanted = {name: spec.shape for name, spec in specs.items()}
    assert shapes == wanted, "safetensors reads another file than was written"
