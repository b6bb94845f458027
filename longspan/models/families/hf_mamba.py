"""Mamba as Hugging Face transformers saves it: ``model_type: mamba``, names ``backbone.*``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.errors import BadCheckpoint
from longspan.models.checkpoint import Checkpoint
from longspan.models.config import MambaConfig, ModelConfig
from longspan.models.families.backbone import BACKBONE_TRAPS, open_backbone
from longspan.models.foreign_config import Field, count, ignored, read_fields

NAME = "hf_mamba"
TRAPS = (
    BACKBONE_TRAPS
    + """\
- `intermediate_size` must be `expand` times `hidden_size`, as transformers computes it.
- `time_step_rank` may be `"auto"`: `hidden_size` / 16, rounded up.
- Converted checkpoints repeat mamba_ssm's keys beside transformers'; those are ignored.
"""
)
FIELDS = {
    "model_type": Field(str, only=("mamba",)),
    "hidden_size": count(),
    "num_hidden_layers": count(),
    "vocab_size": count(),
    "state_size": count(16),
    "conv_kernel": count(4),
    "expand": count(2),
    "intermediate_size": count(None),
    "time_step_rank": Field(object, "auto"),
    "use_bias": Field(bool, False),
    "use_conv_bias": Field(bool, True),
    "hidden_act": Field(str, "silu", only=("silu",)),
    "layer_norm_epsilon": Field(float, 1e-5, positive=True),
    "tie_word_embeddings": Field(bool, True),
    "rms_norm": Field(bool, True, only=(True,)),
    "ssm_cfg": Field(dict, {}, only=({},)),
    **ignored(
        "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
        "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range",
        "rescale_prenorm_residual", "residual_in_fp32", "time_step_floor",
        "time_step_init_scheme", "time_step_max", "time_step_min", "time_step_scale",
        "use_associative_scan", "use_mambapy", "_name_or_path",
        # mamba_ssm's keys, which converted checkpoints repeat
        "d_inner", "d_model", "n_layer", "fused_add_norm", "pad_vocab_size_multiple",
    ),
}  # fmt: skip


def detect(path: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether this is transformers' Mamba: the config's model_type says so."""
    del path
    return config is not None and config.get("model_type") == "mamba"


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
    return model_from(read_fields(data, FIELDS, where=where, family=NAME), where, family=NAME)


def model_from(
    values: Mapping[str, Any], where: str, *, family: str, bcdt_norm_eps: float | None = None
) -> ModelConfig:
    """The layers that the checked values of a config describe.

    Args:
        values: a value for each key of `FIELDS`.
        where: what to call the config in a message.
        family: name of the family.
        bcdt_norm_eps: of Falcon-Mamba's norms on dt, B and C; None for Mamba, which has none.

    Raises:
        BadCheckpoint: two values contradict each other.
    """
    width, rank = values["hidden_size"], values["time_step_rank"]
    inner = values["expand"] * width
    if values["intermediate_size"] not in (None, inner):
        raise BadCheckpoint(
            f"{where} has intermediate_size = {values['intermediate_size']}; it must be expand * "
            f"hidden_size = {inner}, as transformers computes it. Correct one of the three."
        )
    mixer = MambaConfig(
        d_inner=inner,
        d_state=values["state_size"],
        d_conv=values["conv_kernel"],
        dt_rank=math.ceil(width / 16) if rank == "auto" else int(rank),
        conv_bias=values["use_conv_bias"],
        proj_bias=values["use_bias"],
        bcdt_norm_eps=bcdt_norm_eps,
    )
    return ModelConfig(
        family=family,
        vocab_size=values["vocab_size"],
        d_model=width,
        layers=(mixer,) * values["num_hidden_layers"],
        norm_eps=values["layer_norm_epsilon"],
        tied=values["tie_word_embeddings"],
    )
