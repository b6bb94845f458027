"""A checkpoint: a family, a `ModelConfig`, and our parameters made from its tensors one at a time.

A family says how each parameter of `Decoder.state_dict()` is made (`Weight`); names and shapes of
the whole checkpoint are checked when it is opened, before any data is read.

    checkpoint = open_checkpoint("mamba-130m")       # longspan.models.families
    for name, tensor in checkpoint.tensors(): ...
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from longspan.errors import BadCheckpoint
from longspan.models.config import ModelConfig
from longspan.models.decoder import Decoder
from longspan.models.foreign_config import load_config
from longspan.models.tensor_files import TensorFiles
from longspan.tensors import DType, TensorSpec, dtype_name

TOKENIZER = "tokenizer.json"
FLOAT32 = frozenset({"A", "D", "dt_bias"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One parameter and the tensors it is made from.

    Attributes:
        name: as `Decoder.state_dict()` has it.
        sources: name in the checkpoint -> shape it must have there.
        make: the parameter from the source tensors, in the order of `sources`.
    """

    name: str
    sources: Mapping[str, tuple[int, ...]]
    make: Callable[..., torch.Tensor]


def same(tensor: torch.Tensor) -> torch.Tensor:
    """The parameter is the source tensor."""
    return tensor


def copied(name: str, source: str, *shape: int) -> Weight:
    """A parameter that is the tensor `source` itself."""
    return Weight(name=name, sources={source: shape}, make=same)


def joined(
    name: str, prefix: str, rows: Mapping[str, int], *columns: int, kind: str = "weight"
) -> Weight:
    """Several projections of one input as one, their rows in this order.

    Args:
        name: of the parameter.
        prefix: of the modules' names.
        rows: how many rows each module has, by its name.
        columns: the width of the input; nothing for a bias.
        kind: ``"weight"`` or ``"bias"``.
    """
    sources = {f"{prefix}{module}.{kind}": (count, *columns) for module, count in rows.items()}
    return Weight(name=name, sources=sources, make=lambda *parts: torch.cat(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint, checked by name and shape.

    Attributes:
        path: what was asked for.
        config: the layers.
        files: its tensors.
        weights: how each parameter is made, by name.
        tokenizer: its ``tokenizer.json``, if it has one.
        byte_tokens: whether a token is a byte where there is no tokenizer.
        eos: id of the token that ends a text, if its config names one.
    """

    path: Path
    config: ModelConfig
    files: TensorFiles
    weights: Mapping[str, Weight]
    tokenizer: Path | None = None
    byte_tokens: bool = False
    eos: int | None = None

    @property
    def family(self) -> str:
        """Name of the family."""
        return self.config.family

    @property
    def dtype(self) -> DType:
        """Dtype of the weights: that of the embedding."""
        (source,) = self.weights["embedding"].sources
        return dtype_name(str(self.files.dtype(source)).removeprefix("torch."))

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of the tensors that are used, by dtype, as the files hold them."""
        counts: dict[str, int] = {}
        sources = {
            source: shape
            for weight in self.weights.values()
            for source, shape in weight.sources.items()
        }
        for source, shape in sources.items():
            dtype = self.files.dtype(source)
            assert dtype is not None, f"{source} was checked to be floating point"
            name = str(dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + prod(shape) * dtype.itemsize
        return counts

    def specs(self, dtype: DType | None = None) -> tuple[TensorSpec, ...]:
        """Every parameter once, in `dtype` (None: the checkpoint's); A, D, dt_bias in float32.

        Of a config that says so, matrices are uint8, and their scales in `dtype`.
        """
        return tuple(
            TensorSpec(
                name=name,
                shape=tuple(parameter.shape),
                dtype=_stored_dtype(name, parameter, dtype or self.dtype),
            )
            for name, parameter in empty_decoder(self.config).state_dict().items()
        )

    def read(self, name: str, *, allow_nonfinite: bool = False) -> torch.Tensor:
        """One parameter, in the dtype of its source; A, D and dt_bias in float32.

        Args:
            name: as `weights` has it.
            allow_nonfinite: whether it may hold NaN and infinities.

        Raises:
            BadCheckpoint: a value is not finite, and that is not allowed.
        """
        weight = self.weights[name]
        tensor = weight.make(*(self.files.read(source) for source in weight.sources))
        tensor = tensor.float() if is_float32(name) else tensor
        if not allow_nonfinite and not bool(torch.isfinite(tensor).all()):
            raise BadCheckpoint(
                f"{self.files.path} holds values that are not finite in "
                f"{', '.join(weight.sources)}. A model with such weights may answer nothing but "
                "NaN. Use an earlier checkpoint of this training, or take the weights as they are "
                "with allow_nonfinite=True (--allow-nonfinite)."
            )
        return tensor

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter by name, one at a time."""
        for name in self.weights:
            yield name, self.read(name)


def is_float32(name: str) -> bool:
    """Whether a parameter stays float32 in every bundle: A, D and dt_bias of a Mamba mixer."""
    return name.rpartition(".")[2] in FLOAT32


def _stored_dtype(name: str, parameter: torch.Tensor, dtype: DType) -> DType:
    if parameter.dtype == torch.uint8:
        return "uint8"
    return "float32" if is_float32(name) else dtype


def empty_decoder(
    config: ModelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    compute: torch.dtype | None = None,
) -> Decoder:
    """A decoder without memory for its weights: names, shapes and dtypes only."""
    with torch.device("meta"):
        return Decoder(config, dtype=dtype, compute=compute)


def build(
    path: Path,
    config: ModelConfig,
    files: TensorFiles,
    weights: Iterable[Weight],
    *,
    optional: Mapping[str, tuple[int, ...]] | None = None,
    copies: tuple[str, str] | None = None,
    tokenizer: Path | None = None,
    byte_tokens: bool = False,
    eos: int | None = None,
) -> Checkpoint:
    """Check names and shapes of all tensors, and make the checkpoint.

    Args:
        path: what was asked for.
        config: the layers.
        files: the opened tensors.
        weights: one entry for each parameter of the decoder.
        optional: tensors that may be there beside those of `weights`, with their shapes.
        copies: two tensors that must be equal if both are there: a tied head and its embedding.
        tokenizer: the tokenizer's file.
        byte_tokens: whether a token is a byte where there is no tokenizer.
        eos: id of the token that ends a text.

    Raises:
        BadCheckpoint: a tensor is missing, unknown, or has another shape or dtype.
    """
    by_name = {weight.name: weight for weight in weights}
    missing = set(empty_decoder(config).state_dict()) ^ set(by_name)
    assert not missing, f"the family {config.family} does not match the decoder: {sorted(missing)}"
    needed = {name: shape for weight in by_name.values() for name, shape in weight.sources.items()}
    _check_names(files, needed, optional or {}, config.family)
    for name, shape in (needed | dict(optional or {})).items():
        if name in files.names:
            _check_tensor(files, name, shape)
    if copies is not None and set(copies) <= files.names:
        _check_copies(files, *copies)
    return Checkpoint(
        path=path,
        config=config,
        files=files,
        weights=by_name,
        tokenizer=tokenizer,
        byte_tokens=byte_tokens,
        eos=eos,
    )


def load_decoder(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    compute: torch.dtype | None = None,
) -> Decoder:
    """A decoder on the CPU with the checkpoint's weights.

    Args:
        checkpoint: where the weights come from.
        dtype: dtype of the weights but A, D and dt_bias, which are float32; None for the
            checkpoint's.
        compute: dtype of activations; None for that of the weights.
    """
    dtype = dtype or getattr(torch, checkpoint.dtype)
    decoder = empty_decoder(checkpoint.config, dtype=dtype, compute=compute or dtype)
    state = {
        name: tensor if is_float32(name) else tensor.to(dtype)
        for name, tensor in checkpoint.tensors()
    }
    decoder.load_state_dict(state, assign=True)
    return decoder.requires_grad_(False).eval()


def tokenizer_beside(folder: Path) -> Path | None:
    """The folder's ``tokenizer.json``, if there is one."""
    path = folder / TOKENIZER
    return path if path.is_file() else None


def end_token(data: Mapping[str, Any], path: str) -> int | None:
    """The ``eos_token_id`` of a config read from `path`; the first of several.

    Raises:
        BadCheckpoint: it is neither a number, nor a list of numbers, nor null.
    """
    value = data.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for each in ids:
        if isinstance(each, bool) or not isinstance(each, int):
            raise BadCheckpoint(
                f"{path} has eos_token_id {value!r}. It must be the id of the token that ends a "
                "text, a list of such ids, or null. Mend the config, or leave the key out."
            )
    return ids[0] if ids else None


def config_beside(folder: Path, config: Path | None) -> tuple[str, dict[str, Any]]:
    """The config to use and what to call it in messages: `config`, else ``config.json``."""
    path = config or folder / "config.json"
    return str(path), load_config(path)


def _check_names(
    files: TensorFiles,
    needed: Mapping[str, tuple[int, ...]],
    optional: Mapping[str, tuple[int, ...]],
    family: str,
) -> None:
    unknown = sorted(files.names - set(needed) - set(optional))
    for name in sorted(set(needed) - files.names):
        raise BadCheckpoint(
            f"{files.path} lacks the tensor {name!r}"
            f"{_nearest(name, unknown, 'the nearest it has')}. A {family} checkpoint of this "
            "config must have it. Check that config and weights belong together."
        )
    for name in unknown:
        raise BadCheckpoint(
            f"{files.path} has the tensor {name!r}, which a {family} checkpoint of this config "
            f"does not have{_nearest(name, needed, 'the nearest known')}. Every tensor must "
            "be used, because an ignored one could change the model. "
            "Check that config and weights belong together."
        )


def _check_tensor(files: TensorFiles, name: str, shape: tuple[int, ...]) -> None:
    found = files.shape(name)
    if found != shape:
        raise BadCheckpoint(
            f"{files.path} has the tensor {name!r} with shape {list(found)}; its config asks for "
            f"{list(shape)}. Check that config and weights belong together."
        )
    dtype = files.dtype(name)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise BadCheckpoint(
            f"{files.path} has the tensor {name!r} in {dtype or 'a dtype that is no float'}; "
            "longspan reads float32, float16 and bfloat16. Convert the checkpoint to one of them."
        )


def _check_copies(files: TensorFiles, name: str, other: str) -> None:
    ours, theirs = files.read(name).float(), files.read(other).float()
    # Not torch.equal: a NaN in both is no difference.
    if not torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True):
        raise BadCheckpoint(
            f"{files.path} has a tensor {name!r} that differs from {other!r}, but its config says "
            "that they are tied. Tied tensors must be equal. "
            "Say in the config that they are not tied."
        )


def _nearest(name: str, known: Iterable[str], words: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" ({words} is {near[0]!r})" if near else ""
