"""Mamba-2 as Hugging Face transformers saves it: ``model_type: mamba2``, names ``backbone.*``.

The gated norm is always there, with a mean square for each group, as transformers computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.errors import BadCheckpoint
from longspan.models.checkpoint import Checkpoint
from longspan.models.config import Mamba2Config, ModelConfig
from longspan.models.families.backbone import BACKBONE_TRAPS, open_backbone
from longspan.models.families.mamba2_config import MAMBA2_TRAPS, check_groups, step_limit
from longspan.models.foreign_config import Field, count, ignored, read_fields

NAME = "hf_mamba2"
TRAPS = (
    BACKBONE_TRAPS
    + MAMBA2_TRAPS
    + """\
- `norm_before_gate` is true in Codestral's config; transformers gates first all the same.
- `time_step_limit` may end in `{"__float__": "Infinity"}`: so transformers writes infinity in JSON.
- Absent sizes are Codestral's (128 heads of 64, 8 groups), and the head is not tied.
- `num_heads` times `head_dim` must be `expand` times `hidden_size`.
"""
)
FIELDS = {
    "model_type": Field(str, only=("mamba2",)),
    "hidden_size": count(),
    "num_hidden_layers": count(),
    "vocab_size": count(),
    "num_heads": count(128),
    "head_dim": count(64),
    "state_size": count(128),
    "n_groups": count(8),
    "conv_kernel": count(4),
    "expand": count(2),
    "intermediate_size": count(None),
    "use_bias": Field(bool, False),
    "use_conv_bias": Field(bool, True),
    "hidden_act": Field(str, "silu", only=("silu",)),
    "layer_norm_epsilon": Field(float, 1e-5, positive=True),
    "time_step_limit": Field(object, None),
    "tie_word_embeddings": Field(bool, False),
    "rms_norm": Field(bool, True, only=(True,)),
    **ignored(
        "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
        "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range",
        "rescale_prenorm_residual", "residual_in_fp32", "time_step_floor", "time_step_max",
        "time_step_min", "time_step_rank", "time_step_init_scheme", "time_step_scale",
        "chunk_size", "_name_or_path",
        # true in Codestral's config; transformers gates before it normalises all the same
        "norm_before_gate",
    ),
}  # fmt: skip


def detect(path: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether this is transformers' Mamba-2: the config's model_type says so."""
    del path
    return config is not None and config.get("model_type") == "mamba2"


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
    heads, head_dim = values["num_heads"], values["head_dim"]
    inner = values["expand"] * values["hidden_size"]
    if values["intermediate_size"] not in (None, inner):
        raise BadCheckpoint(
            f"{where} has intermediate_size = {values['intermediate_size']}; it must be expand * "
            f"hidden_size = {inner}, as transformers computes it. Correct one of the three."
        )
    if heads * head_dim != inner:
        raise BadCheckpoint(
            f"{where} has num_heads * head_dim = {heads * head_dim}; it must be expand * "
            f"hidden_size = {inner}, as transformers computes it. Correct one of the four."
        )
    check_groups(heads, values["n_groups"], where=where, keys=("num_heads", "n_groups"))
    dt_min, dt_max = step_limit(values["time_step_limit"], where=where, key="time_step_limit")
    mixer = Mamba2Config(
        n_heads=heads,
        head_dim=head_dim,
        n_groups=values["n_groups"],
        d_state=values["state_size"],
        d_conv=values["conv_kernel"],
        conv_bias=values["use_conv_bias"],
        proj_bias=values["use_bias"],
        dt_min=dt_min,
        dt_max=dt_max,
        norm_eps=values["layer_norm_epsilon"],
    )
    return ModelConfig(
        family=NAME,
        vocab_size=values["vocab_size"],
        d_model=values["hidden_size"],
        layers=(mixer,) * values["num_hidden_layers"],
        norm_eps=values["layer_norm_epsilon"],
        tied=values["tie_word_embeddings"],
    )
