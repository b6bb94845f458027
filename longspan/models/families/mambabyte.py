"""MambaByte (arXiv 2401.13660): Mamba-1 over bytes, a mamba_ssm config with a vocabulary of 256.

Published under mamba_ssm's names (``backbone.*``); the class that trained it has its own
(``mambabyte.*``). The tensors decide what the published configs get wrong: LayerNorm by its bias,
and a head of its own where one is there that is not the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from longspan.models.checkpoint import Checkpoint
from longspan.models.config import ModelConfig
from longspan.models.families import mamba
from longspan.models.families.backbone import (
    BACKBONE,
    BACKBONE_TRAPS,
    HEAD,
    Names,
    layer_norm_by_name,
    open_backbone,
)
from longspan.models.foreign_config import ignored
from longspan.models.tensor_files import TensorFiles

NAME = "mambabyte"
VOCABULARY = 256
FIELDS = mamba.FIELDS | ignored("pad_id")
TRAINED = Names(
    embedding="mambabyte.token_embedding.weight",
    layers="mambabyte.layers.",
    final_norm="mambabyte.final_norm",
)

TRAPS = (
    BACKBONE_TRAPS
    + """\
- The published configs say `rms_norm: true` over weights of LayerNorm: a norm with a bias decides.
- The head is untied wherever `lm_head.weight` is there and is not the embedding, whatever
  `tie_embeddings` says.
- Token ids are byte values: no tokenizer, no first or last token.
"""
)


def detect(path: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether this is a mamba_ssm checkpoint over 256 tokens."""
    if config is None or not mamba.detect(path, config):
        return False
    return config.get("vocab_size") == VOCABULARY


def open_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Open a MambaByte folder.

    Raises:
        BadCheckpoint: config or weights are not what longspan supports.
    """
    return open_backbone(
        path,
        config,
        model_config,
        names=(*BACKBONE, TRAINED),
        decide=decide_by_name,
        byte_tokens=True,
    )


def model_config(data: Mapping[str, Any], where: str) -> ModelConfig:
    """The layers that a config describes, before the tensors correct it.

    Raises:
        BadCheckpoint: a key is unknown or missing, or has a value that is not supported.
    """
    return mamba.model_config(data, where, family=NAME, fields=FIELDS)


def decide_by_name(config: ModelConfig, files: TensorFiles, names: Names) -> ModelConfig:
    """LayerNorm by its bias; untied where there is a head that differs from the embedding."""
    config = layer_norm_by_name(config, files, names)
    if not {HEAD, names.embedding} <= files.names:
        return config
    return replace(config, tied=torch.equal(files.read(HEAD), files.read(names.embedding)))
