"""A bundle as what is exported: its weights in another dtype, or in fewer bits."""

from __future__ import annotations

from pathlib import Path

from longspan.bundle import MANIFEST, Prompt, open_bundle
from longspan.errors import BadInput
from longspan.models.checkpoint import Checkpoint, copied
from longspan.models.families import open_checkpoint
from longspan.models.tensor_files import SafetensorsFile


def prompt_of(path: str | Path) -> Prompt:
    """How a bundle at `path` puts a question, or the usual way of a checkpoint."""
    is_bundle = (Path(path) / MANIFEST).is_file()
    return open_bundle(path).manifest.prompt if is_bundle else Prompt()


def open_source(path: str | Path, config: str | Path | None) -> Checkpoint:
    """Open a checkpoint, or a bundle whose weights are of floating point.

    Args:
        path: of either.
        config: a checkpoint's config in place of the one beside it.

    Raises:
        BadBundle: the bundle is damaged.
        BadCheckpoint: the checkpoint cannot be read.
        BadInput: the bundle is quantised already, or a config was given for it.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        return open_checkpoint(path, config)
    if config is not None:
        raise BadInput(
            f"config={str(config)!r} was asked for, and {path} is a bundle, which has its own. "
            "Leave config (--config) out."
        )
    bundle = open_bundle(path)
    if bundle.manifest.quantization is not None:
        raise BadInput(
            f"{path} was asked for as the weights to export, and they have "
            f"{bundle.manifest.quantization.bits} bits. What was rounded off is not there any "
            "more. Export the checkpoint that it was made of."
        )
    files = SafetensorsFile(bundle.weights_path)
    return Checkpoint(
        path=path,
        config=bundle.manifest.config,
        files=files,
        weights={name: copied(name, name, *files.shape(name)) for name in files.names},
        tokenizer=bundle.tokenizer_path,
        byte_tokens=bundle.manifest.tokenizer is not None,
        eos=bundle.manifest.eos,
    )
