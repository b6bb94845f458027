"""What a path is: a checkpoint, a bundle, or a `.span` file."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from longspan.bundle import MANIFEST, open_bundle
from longspan.errors import BadInput, MissingExtra
from longspan.runtime.memory import describe as describe_memory
from longspan.runtime.span_file import FORMAT
from longspan.tensors import WEIGHT_DTYPES


def describe(path: Path) -> dict[str, Any]:
    """Tell what `path` is; the key ``kind`` is checkpoint, bundle, memory or partial reading.

    Of a checkpoint names, shapes and config are read and checked, not its weights' values:
    ``stored_bytes`` are those of its files, ``weight_bytes`` those that a bundle of its dtype
    would hold, ``weight_bytes_by_dtype`` those of a bundle of each dtype, and ``operations`` the
    ops that it needs with the implementations that there are. ``state_bytes`` is the part of the
    state that does not grow, ``cache_entry_bytes`` what each entry of the caches adds: one a token
    for full attention.

    Raises:
        BadInput: there is nothing, or it is damaged, or it is none of these.
        MissingExtra: it may be a checkpoint, and torch, which reads those, is not installed.
    """
    if not path.exists():
        raise BadInput(
            f"{path} does not exist. Name a checkpoint, a bundle's folder, or a .span file."
        )
    if (path / MANIFEST).is_file():
        return _bundle(path)
    if path.is_file() and _looks_like_span(path):
        return describe_memory(path)
    return _checkpoint(path)


def _looks_like_span(path: Path) -> bool:
    """Whether the file is named like one, or says at its start that it is one."""
    with path.open("rb") as file:
        return path.suffix in {".span", ".partial"} or FORMAT.encode() in file.read(4096)


def _bundle(path: Path) -> dict[str, Any]:
    manifest = open_bundle(path).manifest
    return {
        "kind": "bundle",
        "family": manifest.config.family,
        "parameters": manifest.parameters,
        "dtype": manifest.dtype,
        "quantization": manifest.to_json()["quantization"],
        "weight_bytes": manifest.weight_bytes,
        "state_bytes": manifest.state_bytes,
        "cache_entry_bytes": manifest.cache_entry_bytes,
        "layers": manifest.config.layers_by_kind(),
        "vocabulary": manifest.config.vocab_size,
        "tokenizer": manifest.tokenizer_fingerprint() is not None,
        "anchors": _anchors(manifest.source.get("anchors")),
        "prompt": manifest.prompt.template,
        "nonfinite": list(manifest.nonfinite),
        "source": manifest.source.get("checkpoint"),
        "longspan": manifest.source.get("longspan"),
    }


def _anchors(report: dict[str, Any] | None) -> dict[str, Any] | None:
    """What export noted of a bundle's anchors; None without any."""
    names = ("asked", "ids", "every", "positions", "trained")
    return None if report is None else {name: report[name] for name in names}


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        from longspan.kernels import implementations
        from longspan.models.families import family_of, open_checkpoint
        from longspan.models.operations import operations
    except ModuleNotFoundError as error:
        raise MissingExtra(
            needed_for=f"Looking into {path} as a checkpoint",
            package=error.name or "torch",
            extra="export",
        ) from error
    checkpoint = open_checkpoint(path, None)
    config, dtype = checkpoint.config, checkpoint.dtype
    state = config.state_layout(dtype)
    bundle_bytes = {
        each: sum(spec.nbytes for spec in checkpoint.specs(each)) for each in WEIGHT_DTYPES
    }
    return {
        "kind": "checkpoint",
        "family": checkpoint.family,
        "what": family_of(checkpoint).what,
        "layers": config.layers_by_kind(),
        "vocabulary": config.vocab_size,
        "tokenizer": checkpoint.tokenizer is not None or checkpoint.byte_tokens,
        "parameters": sum(prod(spec.shape) for spec in checkpoint.specs(dtype)),
        "dtype": dtype,
        "stored_bytes": checkpoint.stored_bytes(),
        "weight_bytes": bundle_bytes[dtype],
        "weight_bytes_by_dtype": bundle_bytes,
        "state_bytes": sum(spec.nbytes for spec in state),
        "cache_entry_bytes": sum(spec.entry_bytes for spec in state),
        "operations": {op: list(implementations(op)) for op in operations(config)},
    }
