"""The named tensors of a checkpoint, read one at a time: safetensors or pickle, whole or in shards.

Names, shapes and dtypes are known as soon as the files are open; data is mapped from the file and
read when asked for. It does not know what a tensor is for.

    files = open_tensors(Path("mamba-130m"))
    files.names, files.shape("lm_head.weight"), files.read("lm_head.weight")
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from longspan.errors import BadCheckpoint

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
# What torch.load raises at damaged bytes: it trusts every length and every index that it reads.
_DAMAGED = (
    pickle.UnpicklingError, struct.error, AssertionError, AttributeError, EOFError, LookupError,
    OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class TensorFiles(ABC):
    """Named tensors in one or more files."""

    path: Path

    @property
    @abstractmethod
    def names(self) -> frozenset[str]:
        """Every tensor's name."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, known without reading its data."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype | None:
        """The tensor's dtype; None for one that is not floating point."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """The tensor, mapped from the file or read into host memory."""


class SafetensorsFile(TensorFiles):
    """One ``.safetensors`` file, mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = cast(Any, safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise BadCheckpoint(
                f"{path} was asked for as safetensors and cannot be read ({error}). Its header "
                "must describe every byte of the file. Download or save the checkpoint again."
            ) from error
        self._names = frozenset(self._file.keys())

    @property
    def names(self) -> frozenset[str]:
        """Every tensor's name."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the header."""
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype | None:
        """The tensor's dtype, from the header."""
        return _SAFETENSORS_DTYPES.get(self._file.get_slice(name).get_dtype())

    def read(self, name: str) -> torch.Tensor:
        """The tensor, mapped."""
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor


class PickleFile(TensorFiles):
    """One ``torch.save`` file that holds a dict of tensors and nothing that could run code.

    Args:
        path: the file.
        key: the entry of the saved dict that holds the tensors; None if they are the dict.
    """

    def __init__(self, path: Path, *, key: str | None = None) -> None:
        self.path = path
        saved = _unpickle(path)
        if key is not None:
            saved = _entry(path, saved, key)
        self._tensors = _only_tensors(path, saved)

    @property
    def names(self) -> frozenset[str]:
        """Every tensor's name."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype | None:
        """The tensor's dtype."""
        dtype = self._tensors[name].dtype
        return dtype if dtype.is_floating_point else None

    def read(self, name: str) -> torch.Tensor:
        """The tensor: mapped from a zip file, in memory from the format before torch 1.6."""
        return self._tensors[name]


class ShardedFiles(TensorFiles):
    """Tensors spread over the files that an ``.index.json`` names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        weight_map = _weight_map(path)
        shards = {name: _open_file(path.parent / name) for name in sorted(set(weight_map.values()))}
        self._shard_of = {name: shards[file] for name, file in weight_map.items()}
        for name, file in weight_map.items():
            if name not in shards[file].names:
                raise BadCheckpoint(
                    f"{path} puts the tensor {name!r} into {file}, and {file} does not hold it. "
                    "Index and shards must belong together. Download the checkpoint again."
                )

    @property
    def names(self) -> frozenset[str]:
        """Every tensor's name."""
        return frozenset(self._shard_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._shard_of[name].shape(name)

    def dtype(self, name: str) -> torch.dtype | None:
        """The tensor's dtype."""
        return self._shard_of[name].dtype(name)

    def read(self, name: str) -> torch.Tensor:
        """The tensor, from its shard."""
        return self._shard_of[name].read(name)


def open_tensors(path: Path) -> TensorFiles:
    """Open the weights at `path`: a file, or a folder with one of the usual names.

    Raises:
        BadCheckpoint: there are none, or they are damaged, or a pickle holds more than tensors.
    """
    if path.is_file():
        return _open_file(path)
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return ShardedFiles(path / name) if name.endswith(".json") else _open_file(path / name)
    raise BadCheckpoint(
        f"{path} was asked for as a checkpoint and holds no weights. A checkpoint has one of "
        f"{', '.join(WEIGHT_FILES)}. Check that the download is complete."
    )


def _open_file(path: Path) -> TensorFiles:
    if not path.is_file():
        raise BadCheckpoint(
            f"{path} is named as a file of weights and is not there. "
            "Every shard must be beside its index. Download the checkpoint again."
        )
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PickleFile(path)


def _weight_map(path: Path) -> Mapping[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        plain = all(Path(file).name == file for file in weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(
            f"{path} was asked for as an index of shards and has no readable weight_map "
            f"({type(error).__name__}: {error}). It must map names of tensors to names of files. "
            "Download the checkpoint again."
        ) from error
    if not plain:
        raise BadCheckpoint(
            f"{path} names a shard outside its own folder. Shards must be plain file names beside "
            "the index. Download the checkpoint again, from its publisher."
        )
    return dict(weight_map)


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        # Only the zip format can be mapped; the older one is read into memory.
        with warnings.catch_warnings():
            # torch warns of pickle protocols that it then refuses, or reads.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _DAMAGED as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise BadCheckpoint(
                f"{path} was asked for as weights and cannot be read: it is damaged, or no "
                "torch.save file. Every byte that torch.save wrote must be there. Download or save "
                "the checkpoint again."
            ) from error
        raise BadCheckpoint(
            f"{path} was asked for as weights and cannot be read safely: it names {refused[1]}. "
            "Only a dict of plain tensors is read, because a pickle of anything else can run any "
            "code. Save the tensors alone, best as safetensors."
        ) from error


def _entry(path: Path, saved: Any, key: str) -> Any:
    if isinstance(saved, dict) and isinstance(saved.get(key), dict):
        return saved[key]
    found = f"the keys {', '.join(sorted(map(str, saved))[:5])}" if isinstance(saved, dict) else (
        f"a {type(saved).__name__}"
    )  # fmt: skip
    raise BadCheckpoint(
        f"{path} was asked for its entry {key!r} and holds {found}. The file must be a dict whose "
        f"entry {key!r} is a dict of tensors. Save it as torch.save({{{key!r}: state_dict}}, path)."
    )


def _only_tensors(path: Path, saved: Any) -> dict[str, torch.Tensor]:
    if not isinstance(saved, dict):
        raise BadCheckpoint(
            f"{path} was asked for as weights and holds a {type(saved).__name__}. "
            "It must be a dict of tensors. Save model.state_dict(), not the model."
        )
    for name, value in saved.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise BadCheckpoint(
                f"{path} was asked for as weights and its entry {name!r} is of "
                f"type {type(value).__name__}. Every entry must be a tensor. "
                "Save model.state_dict() alone."
            )
    return saved
