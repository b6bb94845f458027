"""A stack of Mamba mixers under ``backbone.*``, as mamba_ssm and transformers both name it.

mamba_ssm's blocks may hold attention in place of the mixer, and an MLP after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
EMBEDDINGS = ("backbone.embedding.weight", "backbone.embeddings.weight")


def open_backbone(
    path: Path, config: Path | None, model_config: Callable[[Mapping[str, Any], str], ModelConfig]
) -> Checkpoint:
    """Open config and weights in the folder `path` as a stack of Mamba layers.

    Args:
        path: the folder, or a file of weights in it.
        config: the config's file; None for the one beside the weights.
        model_config: the family's reading of a config, and of what a message calls it.

    Raises:
        BadCheckpoint: config or weights are not what longspan supports.
    """
    where, data = config_beside(path if path.is_dir() else path.parent, config)
    return _open(path, model_config(data, where), eos=end_token(data))


def _open(path: Path, config: ModelConfig, *, eos: int | None) -> Checkpoint:
    files = open_tensors(path)
    embedding = _embedding_name(files)
    shape = (config.vocab_size, config.d_model)
    return build(
        path,
        config,
        files,
        _weights(config, embedding),
        optional={HEAD: shape} if config.tied else {},
        copies=(HEAD, embedding) if config.tied else None,
        tokenizer=tokenizer_beside(path if path.is_dir() else path.parent),
        eos=eos,
    )


def _embedding_name(files: TensorFiles) -> str:
    # Both projects' tools write both names, so either is taken.
    return next((name for name in EMBEDDINGS if name in files.names), EMBEDDINGS[0])


def _weights(config: ModelConfig, embedding: str) -> Iterator[Weight]:
    width, vocabulary = config.d_model, config.vocab_size
    yield copied("embedding", embedding, vocabulary, width)
    prefixed = zip(config.layers, _block_prefixes(config.layers), strict=True)
    for i, (layer, theirs) in enumerate(prefixed):
        norm = "norm2" if isinstance(layer, MlpConfig) else "norm"
        yield copied(f"layers.{i}.norm.weight", f"{theirs}{norm}.weight", width)
        yield from _layer_weights(f"layers.{i}.mixer.", theirs, layer, width)
    yield copied("norm.weight", "backbone.norm_f.weight", width)
    if not config.tied:
        yield copied("head", HEAD, vocabulary, width)


def _block_prefixes(layers: tuple[LayerConfig, ...]) -> Iterator[str]:
    """The checkpoint's prefix of each layer: an MLP belongs to the block of the layer before it."""
    block = -1
    for layer in layers:
        block += not isinstance(layer, MlpConfig)
        yield f"backbone.layers.{block}."


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
