"""What a path is: a checkpoint, a bundle, or a `.span` file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longspan.bundle import MANIFEST, open_bundle
from longspan.errors import BadInput, MissingExtra
from longspan.runtime.memory import describe as describe_memory
from longspan.runtime.span_file import FORMAT


def describe(path: Path) -> dict[str, Any]:
    """Tell what `path` is; the key ``kind`` is checkpoint, bundle, memory or partial reading.

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
        "weight_bytes": manifest.weight_bytes,
        "state_bytes": manifest.state_bytes,
        "cache_entry_bytes": manifest.cache_entry_bytes,
        "layers": manifest.config.layers_by_kind(),
        "vocabulary": manifest.config.vocab_size,
        "tokenizer": manifest.tokenizer_fingerprint() is not None,
        "prompt": manifest.prompt.template,
        "source": manifest.source.get("checkpoint"),
        "longspan": manifest.source.get("longspan"),
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        from longspan.models.families import open_checkpoint
    except ModuleNotFoundError as error:
        raise MissingExtra(
            needed_for=f"Looking into {path} as a checkpoint",
            package=error.name or "torch",
            extra="export",
        ) from error
    checkpoint = open_checkpoint(path, None)
    config, dtype = checkpoint.config, checkpoint.dtype
    specs = checkpoint.specs(dtype)
    return {
        "kind": "checkpoint",
        "family": checkpoint.family,
        "dtype": dtype,
        "weight_bytes": sum(spec.nbytes for spec in specs),
        "state_bytes": sum(spec.nbytes for spec in config.state_layout(dtype)),
        "cache_entry_bytes": sum(spec.entry_bytes for spec in config.state_layout(dtype)),
        "layers": config.layers_by_kind(),
        "vocabulary": config.vocab_size,
        "tokenizer": checkpoint.tokenizer is not None,
    }
