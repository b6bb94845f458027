"""lit_gpt's Config for Samba and the models that its paper compares it with, strictly read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longspan.errors import BadCheckpoint
from longspan.models.families.samba_blocks import retains, retention_heads
from longspan.models.families.samba_published import recognise
from longspan.models.foreign_config import Field, count, ignored, read_fields
from longspan.models.tensor_files import TensorFiles

NAME = "samba"
FIELDS = {
    "n_layer": count(),
    "n_embd": count(),
    "n_head": count(None),
    "n_query_groups": count(None),
    "head_size": count(None),
    "intermediate_size": count(None),
    "local_window": Field(int, -1),
    "vocab_size": count(None),
    "padded_vocab_size": count(None),
    "padding_multiple": count(512),
    "norm_eps": Field(float, 1e-5, positive=True),
    "rope_base": Field(float, 10000.0, positive=True),
    "nope": Field(bool, False),
    "mb_per_layer": Field(int, -1),
    "ret_per_layer": Field(int, -1),
    "gla_per_layer": Field(int, -1),
    "full_per_layer": count(1000000),
    "attn_layer_pos": Field(object, None),
    "mamba": Field(bool, False),
    "mamba_swa_mlp": Field(bool, False),
    "abl_mamba": Field(bool, False),
    "mamba_init": Field(bool, False),
    "tied": Field(bool, None),
    "eos_token_id": Field(int, None),
    "rotary_percentage": Field(float, 1.0, only=(1.0,)),
    "condense_ratio": Field(int, 1, only=(1,)),
    "bias": Field(bool, False, only=(False,)),
    "parallel_residual": Field(bool, False, only=(False,)),
    "shared_attention_norm": Field(bool, False, only=(False,)),
    "mlp": Field(bool, True, only=(True,)),
    "rms_norm": Field(bool, True, only=(True,)),
    "sc_attn": Field(bool, False, only=(False,)),
    "use_mega": Field(bool, False, only=(False,)),
    "_norm_class": Field(str, "RMSNorm", only=("RMSNorm", "FusedRMSNorm")),
    "_mlp_class": Field(str, "LLaMAMLP", only=("LLaMAMLP",)),
    **ignored(
        "name", "org", "block_size", "residual_in_fp32", "fused_add_norm", "compress",
        "bos_token_id", "pad_token_id",
    ),
}  # fmt: skip


def config_values(
    given: Mapping[str, Any] | None, where: str, files: TensorFiles
) -> dict[str, Any]:
    """Check a lit_gpt config, or recognise one of the published sizes where there is none.

    Args:
        given: the config, or None.
        where: what to call it in messages.
        files: the checkpoint's tensors.

    Raises:
        BadCheckpoint: the config is not supported, or there is none and the size is not known.
    """
    values = read_fields(given or recognise(files), FIELDS, where=where, family=NAME)
    if values["padded_vocab_size"] is None:
        _require(values, where, "vocab_size")
        multiple = values["padding_multiple"]
        values["padded_vocab_size"] = -(-values["vocab_size"] // multiple) * multiple
    if not values["mamba"]:
        _require(values, where, "n_head", "intermediate_size")
        _check_heads(values, where)
        values["n_query_groups"] = values["n_query_groups"] or values["n_head"]
        values["head_size"] = values["head_size"] or values["n_embd"] // values["n_head"]
    return values


def tied_head(values: Mapping[str, Any], files: TensorFiles) -> bool:
    """Whether the head is the embedding: lit_gpt ties where it starts weights as Mamba does."""
    if values["tied"] is not None:
        return bool(values["tied"])
    starts_as_mamba = bool(values["mamba"]) or bool(values["mamba_init"])
    return starts_as_mamba or "lm_head.weight" not in files.names


def _require(values: Mapping[str, Any], where: str, *keys: str) -> None:
    for key in keys:
        if values[key] is None:
            raise BadCheckpoint(
                f"{where} lacks the key {key!r}. A {NAME} config must have it. Add it."
            )


def _check_heads(values: Mapping[str, Any], where: str) -> None:
    width, heads = values["n_embd"], values["n_head"]
    groups = values["n_query_groups"] or heads
    if heads % groups or (values["head_size"] is None and width % heads):
        raise BadCheckpoint(
            f"{where} has n_embd = {width}, n_head = {heads}, n_query_groups = "
            f"{groups}; n_head must be a multiple of n_query_groups, and n_embd of n_head unless "
            "head_size is given. Correct them."
        )
    if retains(values) and (heads < 2 or width % (2 * retention_heads(values))):
        raise BadCheckpoint(
            f"{where} has n_embd = {width}, n_head = {heads} and ret_per_layer = "
            f"{values['ret_per_layer']}; retention has n_head // 2 heads, one or more, and rotates "
            "pairs of channels, so n_embd must be a multiple of twice that. Correct them."
        )
