"""state-spaces Mamba as mamba_ssm saves it: config with ``d_model``, names ``backbone.*``.

Mamba-1, after RMSNorm or LayerNorm, with attention layers and gated MLPs where the config says so.
A residual kept in the weights' dtype (`residual_in_fp32` false) is computed in float32 all the
same; the difference is rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.models.checkpoint import Checkpoint
from longspan.models.config import MambaConfig, ModelConfig
from longspan.models.families.backbone import BACKBONE_TRAPS, layer_norm_by_name, open_backbone
from longspan.models.families.mamba_ssm import BLOCK_TRAPS, block_layers
from longspan.models.foreign_config import Field, count, ignored, read_fields

NAME = "mamba"
MAMBA_SSM_TRAPS = (
    BACKBONE_TRAPS
    + BLOCK_TRAPS
    + """\
- The vocabulary is padded to a multiple of `pad_vocab_size_multiple`.
- `tie_embeddings` is true where it is absent, and `lm_head.weight` may be stored all the same: then
  it must equal the embedding.
- The norms' eps stands in no config: 1e-5.
- The residual is float32 whatever `residual_in_fp32` says.
"""
)
TRAPS = (
    MAMBA_SSM_TRAPS
    + """\
- `dt_rank` may be `"auto"`: `d_model` / 16, rounded up.
"""
)
FIELDS = {
    "d_model": count(),
    "n_layer": count(),
    "vocab_size": count(),
    "pad_vocab_size_multiple": count(8),
    "ssm_cfg": Field(dict, {}),
    "rms_norm": Field(bool, True),
    "tie_embeddings": Field(bool, True),
    "d_intermediate": Field(int, 0),
    "attn_layer_idx": Field(list, []),
    "attn_cfg": Field(dict, {}),
    **ignored("residual_in_fp32", "fused_add_norm", "eos_token_id", "bos_token_id", "pad_token_id"),
}
SSM_FIELDS = {
    "layer": Field(str, "Mamba1", only=("Mamba1",)),
    "d_state": count(16),
    "d_conv": count(4),
    "expand": count(2),
    "dt_rank": Field(object, "auto"),
    "conv_bias": Field(bool, True),
    "bias": Field(bool, False),
    **ignored(
        "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path", "layer_idx"
    ),
}


def detect(path: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether this is a mamba_ssm checkpoint: its config speaks of d_model and n_layer."""
    del path
    return config is not None and "model_type" not in config and {"d_model", "n_layer"} <= {*config}


def open_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Open a mamba_ssm folder.

    Raises:
        BadCheckpoint: config or weights are not what longspan supports.
    """
    return open_backbone(path, config, model_config, decide=layer_norm_by_name)


def model_config(
    data: Mapping[str, Any],
    where: str,
    *,
    family: str = NAME,
    fields: Mapping[str, Field] = FIELDS,
) -> ModelConfig:
    """The layers that a mamba_ssm config describes.

    Args:
        data: the config.
        where: what messages call it.
        family: whose it is.
        fields: the keys it may have.

    Raises:
        BadCheckpoint: a key is unknown or missing, or has a value that is not supported.
    """
    values = read_fields(data, fields, where=where, family=family)
    ssm = read_fields(values["ssm_cfg"], SSM_FIELDS, where=f"{where}, ssm_cfg", family=family)
    width, multiple = values["d_model"], values["pad_vocab_size_multiple"]
    mixer = MambaConfig(
        d_inner=ssm["expand"] * width,
        d_state=ssm["d_state"],
        d_conv=ssm["d_conv"],
        dt_rank=math.ceil(width / 16) if ssm["dt_rank"] == "auto" else int(ssm["dt_rank"]),
        conv_bias=ssm["conv_bias"],
        proj_bias=ssm["bias"],
    )
    return ModelConfig(
        family=family,
        vocab_size=-(-values["vocab_size"] // multiple) * multiple,
        d_model=width,
        layers=block_layers(values, mixer, where=where, family=family),
        norm_eps=1e-5,
        norm="rms" if values["rms_norm"] else "layer",
        tied=values["tie_embeddings"],
    )
