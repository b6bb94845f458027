"""state-spaces Mamba-2 as mamba_ssm saves it: ``ssm_cfg: {"layer": "Mamba2"}``, ``backbone.*``.

Mamba-2, with attention layers and gated MLPs where the config says so (the ``mamba2attn`` hybrids).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.errors import BadCheckpoint
from longspan.models.checkpoint import Checkpoint
from longspan.models.config import Mamba2Config, ModelConfig
from longspan.models.families import mamba
from longspan.models.families.backbone import layer_norm_by_name, open_backbone
from longspan.models.families.mamba2_config import MAMBA2_TRAPS, check_groups, step_limit
from longspan.models.families.mamba_ssm import block_layers
from longspan.models.foreign_config import Field, count, ignored, read_fields

NAME = "mamba2"
TRAPS = (
    mamba.MAMBA_SSM_TRAPS
    + MAMBA2_TRAPS
    + """\
- D is one number a head, or one a channel with `D_has_hdim`.
- `rmsnorm` false leaves the gate alone, without a norm.
- `d_ssm` below `expand` times `d_model` would put a gated MLP beside the recurrence: refused.
"""
)
NORM_EPS = 1e-5
SSM_FIELDS = {
    "layer": Field(str, only=("Mamba2",)),
    "d_state": count(128),
    "d_conv": count(4),
    "expand": count(2),
    "headdim": count(64),
    "d_ssm": count(None),
    "ngroups": count(1),
    "D_has_hdim": Field(bool, False),
    "rmsnorm": Field(bool, True),
    "norm_before_gate": Field(bool, False, only=(False,)),
    "dt_limit": Field(object, None),
    "conv_bias": Field(bool, True),
    "bias": Field(bool, False),
    **ignored(
        "dt_min", "dt_max", "dt_init_floor", "A_init_range", "conv_init", "chunk_size",
        "use_mem_eff_path", "layer_idx", "sequence_parallel",
    ),
}  # fmt: skip


def detect(path: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether this is a mamba_ssm checkpoint whose layers are Mamba-2."""
    if config is None or not mamba.detect(path, config):
        return False
    ssm = config.get("ssm_cfg")
    return isinstance(ssm, dict) and ssm.get("layer") == "Mamba2"


def open_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Open a mamba_ssm folder.

    Raises:
        BadCheckpoint: config or weights are not what longspan supports.
    """
    return open_backbone(path, config, model_config, decide=layer_norm_by_name)


def model_config(data: Mapping[str, Any], where: str) -> ModelConfig:
    """The layers that a mamba_ssm config describes.

    Raises:
        BadCheckpoint: a key is unknown or missing, or has a value that is not supported.
    """
    values = read_fields(data, mamba.FIELDS, where=where, family=NAME)
    multiple = values["pad_vocab_size_multiple"]
    mixer = _mixer(values["ssm_cfg"], values["d_model"], f"{where}, ssm_cfg")
    return ModelConfig(
        family=NAME,
        vocab_size=-(-values["vocab_size"] // multiple) * multiple,
        d_model=values["d_model"],
        layers=block_layers(values, mixer, where=where, family=NAME),
        norm_eps=NORM_EPS,
        norm="rms" if values["rms_norm"] else "layer",
        tied=values["tie_embeddings"],
    )


def _mixer(data: Mapping[str, Any], width: int, where: str) -> Mamba2Config:
    ssm = read_fields(data, SSM_FIELDS, where=where, family=NAME)
    inner, head_dim = ssm["expand"] * width, ssm["headdim"]
    if ssm["d_ssm"] not in (None, inner):
        raise BadCheckpoint(
            f"{where} has d_ssm = {ssm['d_ssm']}; longspan supports only expand * d_model = "
            f"{inner}, where all channels pass the recurrence. This checkpoint cannot be exported "
            "by this version."
        )
    if inner % head_dim:
        raise BadCheckpoint(
            f"{where} has headdim = {head_dim}; it must divide expand * d_model = {inner}. "
            "Correct it."
        )
    heads = inner // head_dim
    check_groups(heads, ssm["ngroups"], where=where, keys=("expand * d_model / headdim", "ngroups"))
    dt_min, dt_max = step_limit(ssm["dt_limit"], where=where, key="dt_limit")
    return Mamba2Config(
        n_heads=heads,
        head_dim=head_dim,
        n_groups=ssm["ngroups"],
        d_state=ssm["d_state"],
        d_conv=ssm["d_conv"],
        conv_bias=ssm["conv_bias"],
        proj_bias=ssm["bias"],
        dt_min=dt_min,
        dt_max=dt_max,
        norm_eps=NORM_EPS if ssm["rmsnorm"] else None,
        d_per_channel=ssm["D_has_hdim"],
    )
