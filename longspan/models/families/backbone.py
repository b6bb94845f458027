"""A stack of Mamba mixers under ``backbone.*``, as mamba_ssm and transformers both name it.

mamba_ssm's blocks may hold attention in place of the mixer, and an MLP after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
from longspan.models.config import (
    FullAttentionConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    ModelConfig,
)
from longspan.models.families.mamba_ssm import attention_weights, mlp_weights
from longspan.models.families.mixer import mamba2_weights, mamba_weights
from longspan.models.tensor_files import TensorFiles, open_tensors

BACKBONE_TRAPS = """\
- The embedding is `backbone.embedding.weight` (mamba_ssm) or `backbone.embeddings.weight`
  (transformers); either is read, whoever wrote the config.
- A is stored as `A_log`; -exp of it is taken once, in float32. A, D and dt's bias are float32 in a
  bundle of any dtype.
- The bias of dt is added inside softplus.
"""
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
        weights(model, called),
        optional={HEAD: (model.vocab_size, model.d_model)} if model.tied else {},
        copies=(HEAD, called.embedding) if model.tied else None,
        tokenizer=tokenizer_beside(folder),
        byte_tokens=byte_tokens,
        eos=end_token(data, where),
    )


def layer_norm_by_name(config: ModelConfig, files: TensorFiles, names: Names) -> ModelConfig:
    """LayerNorm where the first norm has a bias, which RMSNorm never has; else as the config says.

    MambaByte's published configs say ``rms_norm: true`` over weights of LayerNorm.
    """
    biased = f"{names.layers}0.norm.bias" in files.names
    return replace(config, norm="layer") if biased else config


def weights(config: ModelConfig, names: Names) -> Iterator[Weight]:
    """How each parameter of a stack of Mamba layers is made."""
    width, vocabulary = config.d_model, config.vocab_size
    yield copied("embedding", names.embedding, vocabulary, width)
    blocks = _block_numbers(config.layers)
    for i, (layer, block) in enumerate(zip(config.layers, blocks, strict=True)):
        ours, theirs = f"layers.{i}.", f"{names.layers}{block}."
        norm = "norm2" if isinstance(layer, MlpConfig) else "norm"
        yield from _norm(f"{ours}norm", f"{theirs}{norm}", config)
        yield from _layer_weights(f"{ours}mixer.", theirs, layer, width)
    yield from _norm("norm", names.final_norm, config)
    if not config.tied:
        yield copied("head", HEAD, vocabulary, width)


def _block_numbers(layers: tuple[LayerConfig, ...]) -> Iterator[int]:
    """The checkpoint's block of each layer: an MLP belongs to the block of the layer before it."""
    block = -1
    for layer in layers:
        block += not isinstance(layer, MlpConfig)
        yield block


def _layer_weights(ours: str, theirs: str, layer: LayerConfig, width: int) -> Iterable[Weight]:
    if isinstance(layer, MlpConfig):
        return mlp_weights(ours, f"{theirs}mlp.", layer, width)
    theirs = f"{theirs}mixer."
    if isinstance(layer, FullAttentionConfig):
        return attention_weights(ours, theirs, layer, width)
    if isinstance(layer, Mamba2Config):
        return mamba2_weights(ours, theirs, layer, width)
    assert isinstance(layer, MambaConfig), "a backbone has no other mixer"
    return mamba_weights(ours, theirs, layer, width)


def _norm(ours: str, theirs: str, config: ModelConfig) -> Iterator[Weight]:
    yield copied(f"{ours}.weight", f"{theirs}.weight", config.d_model)
    if config.norm == "layer":
        yield copied(f"{ours}.bias", f"{theirs}.bias", config.d_model)
