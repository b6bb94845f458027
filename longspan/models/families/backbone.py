"""A stack of Mamba mixers under ``backbone.*``, as mamba_ssm and transformers both name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longspan.models.checkpoint import (
    Checkpoint,
    Weight,
    build,
    config_beside,
    copied,
    end_token,
    tokenizer_beside,
)
from longspan.models.config import Mamba2Config, MambaConfig, ModelConfig
from longspan.models.families.mixer import mamba2_weights, mamba_weights
from longspan.models.tensor_files import TensorFiles, open_tensors

HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What a project calls the tensors around the mixers; a layer's prefix is ``{layers}{i}.``."""

    embedding: str
    layers: str = "backbone.layers."
    final_norm: str = "backbone.norm_f"


# Both projects' tools write both names of the embedding, so either is taken.
BACKBONE = (
    Names(embedding="backbone.embedding.weight"),
    Names(embedding="backbone.embeddings.weight"),
)
# What the names of the tensors decide, and the config does not.
Decide = Callable[[ModelConfig, TensorFiles, Names], ModelConfig]


def open_backbone(
    path: Path,
    config: Path | None,
    model_config: Callable[[Mapping[str, Any], str], ModelConfig],
    *,
    names: tuple[Names, ...] = BACKBONE,
    decide: Decide | None = None,
    byte_tokens: bool = False,
) -> Checkpoint:
    """Open config and weights in the folder `path` as a stack of Mamba layers.

    Args:
        path: the folder, or a file of weights in it.
        config: the config's file; None for the one beside the weights.
        model_config: the family's reading of a config, and of what a message calls it.
        names: what the tensors may be called; those whose embedding is there are taken.
        decide: corrects the reading by the tensors that are there.
        byte_tokens: whether a token is a byte where there is no tokenizer.

    Raises:
        BadCheckpoint: config or weights are not what longspan supports.
    """
    folder = path if path.is_dir() else path.parent
    where, data = config_beside(folder, config)
    model = model_config(data, where)
    files = open_tensors(path)
    called = next((one for one in names if one.embedding in files.names), names[0])
    if decide is not None:
        model = decide(model, files, called)
    return build(
        path,
        model,
        files,
        _weights(model, called),
        optional={HEAD: (model.vocab_size, model.d_model)} if model.tied else {},
        copies=(HEAD, called.embedding) if model.tied else None,
        tokenizer=tokenizer_beside(folder),
        byte_tokens=byte_tokens,
        eos=end_token(data),
    )


def layer_norm_by_name(config: ModelConfig, files: TensorFiles, names: Names) -> ModelConfig:
    """LayerNorm where the first norm has a bias, which RMSNorm never has; else as the config says.

    MambaByte's published configs say ``rms_norm: true`` over weights of LayerNorm.
    """
    biased = f"{names.layers}0.norm.bias" in files.names
    return replace(config, norm="layer") if biased else config


def _weights(config: ModelConfig, names: Names) -> Iterator[Weight]:
    width, vocabulary = config.d_model, config.vocab_size
    yield copied("embedding", names.embedding, vocabulary, width)
    for i, layer in enumerate(config.layers):
        ours, theirs = f"layers.{i}.", f"{names.layers}{i}."
        yield from _norm(f"{ours}norm", f"{theirs}norm", config)
        if isinstance(layer, Mamba2Config):
            yield from mamba2_weights(f"{ours}mixer.", f"{theirs}mixer.", layer, width)
        else:
            assert isinstance(layer, MambaConfig), "a backbone holds Mamba layers only"
            yield from mamba_weights(f"{ours}mixer.", f"{theirs}mixer.", layer, width)
    yield from _norm("norm", names.final_norm, config)
    if not config.tied:
        yield copied("head", HEAD, vocabulary, width)


def _norm(ours: str, theirs: str, config: ModelConfig) -> Iterator[Weight]:
    yield copied(f"{ours}.weight", f"{theirs}.weight", config.d_model)
    if config.norm == "layer":
        yield copied(f"{ours}.bias", f"{theirs}.bias", config.d_model)
