"""Falcon-Mamba as Hugging Face transformers saves it: ``model_type: falcon_mamba``.

Mamba-1 with an RMSNorm without weights on dt, B and C; everything else is `hf_mamba`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.models.checkpoint import Checkpoint
from longspan.models.config import ModelConfig
from longspan.models.families import hf_mamba
from longspan.models.families.backbone import open_backbone
from longspan.models.foreign_config import Field, ignored, read_fields

NAME = "falcon_mamba"
TRAPS = (
    hf_mamba.TRAPS
    + """\
- dt, B and C pass an RMSNorm each, with `mixer_rms_eps` and without weights: no tensor of the
  checkpoint tells of it.
"""
)
FIELDS = hf_mamba.FIELDS | {
    "model_type": Field(str, only=("falcon_mamba",)),
    "mixer_rms_eps": Field(float, 1e-6, positive=True),
    **ignored("use_falcon_mambapy"),
}


def detect(path: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether this is transformers' Falcon-Mamba: the config's model_type says so."""
    del path
    return config is not None and config.get("model_type") == "falcon_mamba"


def open_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Open a transformers folder.

    Raises:
        BadCheckpoint: config or weights are not what longspan supports.
    """
    return open_backbone(path, config, model_config)


def model_config(data: Mapping[str, Any], where: str) -> ModelConfig:
    """The layers that a transformers config describes.

    Raises:
        BadCheckpoint: a key is unknown or missing, or has a value that is not supported.
    """
    values = read_fields(data, FIELDS, where=where, family=NAME)
    return hf_mamba.model_from(values, where, family=NAME, bcdt_norm_eps=values["mixer_rms_eps"])
