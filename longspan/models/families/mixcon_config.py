"""The config of a MixCon checkpoint: its keys and defaults, and the layers that it describes.

The format is longspan's own (docs/mixcon.md). The placement of attention and of mixtures of experts
has Jamba's keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from longspan.errors import BadCheckpoint
from longspan.models.config import (
    ConbaConfig,
    FullAttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
)
from longspan.models.foreign_config import Field, count, ignored, read_fields

NAME = "mixcon"
FIELDS = {
    "model_type": Field(str, only=(NAME,)),
    "vocab_size": count(),
    "hidden_size": count(),
    "num_hidden_layers": count(),
    "intermediate_size": count(),
    "attn_layer_period": count(4),
    "attn_layer_offset": Field(int, 2),
    "num_attention_heads": count(),
    "num_key_value_heads": count(None),
    "head_dim": count(None),
    "rope_theta": Field(float, None, positive=True),
    "expert_layer_period": count(2),
    "expert_layer_offset": Field(int, 1),
    "num_experts": count(16),
    "num_experts_per_tok": count(2),
    "norm_topk_prob": Field(bool, False),
    "moe_intermediate_size": count(None),
    "conba": Field(dict, None),
    "rms_norm_eps": Field(float, 1e-5, positive=True),
    "tie_word_embeddings": Field(bool, False),
    **ignored(
        "architectures", "dtype", "torch_dtype", "transformers_version", "bos_token_id",
        "eos_token_id", "pad_token_id",
    ),
}  # fmt: skip
CONBA_FIELDS = {
    "head_dim": count(64),
    "d_state": count(64),
    "d_select": count(None),
    "tau": count(1),
    "eta": Field(float, 0.01),
    "gain": Field(str, "token", only=("token", "chunk", "off")),
    "gain_chunk": count(None),
    "k_max": Field(float, 1.0, positive=True),
    "f": Field(str, "identity", only=("identity", "tanh")),
    # An MLP inside of the recurrence would be read from memory at every token (docs/decisions.md).
    "g": Field(str, "identity", only=("identity",)),
}


def model_config(data: Mapping[str, Any], where: str) -> ModelConfig:
    """The layers that a MixCon config describes.

    Raises:
        BadCheckpoint: a key is unknown or missing, or has a value that is not supported.
    """
    values = read_fields(data, FIELDS, where=where, family=NAME)
    attention = _placed(values, where, "attn")
    experts = _placed(values, where, "expert")
    mixers: dict[bool, LayerConfig] = {
        True: _attention(values, where),
        False: _conba(values, where),
    }
    mlps: dict[bool, LayerConfig] = {
        True: _moe(values, where),
        False: MlpConfig(d_ff=values["intermediate_size"]),
    }
    return ModelConfig(
        family=NAME,
        vocab_size=values["vocab_size"],
        d_model=values["hidden_size"],
        layers=tuple(
            layer
            for i in range(values["num_hidden_layers"])
            for layer in (mixers[i in attention], mlps[i in experts])
        ),
        norm_eps=values["rms_norm_eps"],
        tied=values["tie_word_embeddings"],
    )


def _placed(values: Mapping[str, Any], where: str, kind: str) -> range:
    """The numbers of the blocks that have attention (``"attn"``), or experts (``"expert"``)."""
    keys = f"{kind}_layer_period", f"{kind}_layer_offset"
    period, offset = (values[key] for key in keys)
    if not 0 <= offset < period:
        raise BadCheckpoint(
            f"{where} has {keys[0]} = {period} and {keys[1]} = {offset}; the second must be from 0 "
            "to one below the first. Correct them."
        )
    return range(offset, values["num_hidden_layers"], period)


def _attention(values: Mapping[str, Any], where: str) -> FullAttentionConfig:
    width, heads = values["hidden_size"], values["num_attention_heads"]
    groups = values["num_key_value_heads"] or heads
    if values["head_dim"] is None:
        _require_divisor(where, "hidden_size", width, "num_attention_heads", heads)
    _require_divisor(where, "num_attention_heads", heads, "num_key_value_heads", groups)
    head_dim = values["head_dim"] or width // heads
    if values["rope_theta"] is not None and head_dim % 2:
        raise BadCheckpoint(
            f"{where} has a rope_theta and attention heads of width {head_dim}; it must be even, "
            "because RoPE turns one half against the other. Correct head_dim, or leave rope_theta "
            "out."
        )
    return FullAttentionConfig(
        n_heads=heads, n_kv_heads=groups, head_dim=head_dim, rope_base=values["rope_theta"]
    )


def _conba(values: Mapping[str, Any], where: str) -> ConbaConfig:
    where = f"{where}, conba"
    conba = read_fields(values["conba"] or {}, CONBA_FIELDS, where=where, family=NAME)
    width, head_dim, states = values["hidden_size"], conba["head_dim"], conba["d_state"]
    _require_divisor(where, "hidden_size", width, "head_dim", head_dim)
    if conba["eta"] < 0:
        raise BadCheckpoint(
            f"{where} has eta = {json.dumps(conba['eta'])}; it must be 0 or more. Correct it."
        )
    chunk = conba["gain_chunk"]
    by_chunk = conba["gain"] == "chunk"
    if by_chunk != (chunk is not None) or chunk == 1:
        raise BadCheckpoint(
            f"{where} has gain = {json.dumps(conba['gain'])} and gain_chunk = {json.dumps(chunk)}; "
            'gain_chunk must be 2 or more where gain is "chunk", and left out elsewhere. '
            "Correct them."
        )
    heads = width // head_dim
    return ConbaConfig(
        n_heads=heads,
        head_dim=head_dim,
        d_state=states,
        d_select=conba["d_select"] or heads * states,
        delay=conba["tau"],
        gain=conba["gain"],
        gain_chunk=chunk,
        eta=float(conba["eta"]),
        k_max=float(conba["k_max"]),
        activation=conba["f"],
        norm_eps=values["rms_norm_eps"],
    )


def _moe(values: Mapping[str, Any], where: str) -> MoeConfig:
    experts, top_k = values["num_experts"], values["num_experts_per_tok"]
    if top_k > experts:
        raise BadCheckpoint(
            f"{where} has num_experts = {experts} and num_experts_per_tok = {top_k}; the second "
            "must be at most the first. Correct them."
        )
    return MoeConfig(
        n_experts=experts,
        top_k=top_k,
        d_ff=values["moe_intermediate_size"] or values["intermediate_size"],
        renormalise=values["norm_topk_prob"],
    )


def _require_divisor(where: str, key: str, value: int, divisor_key: str, divisor: int) -> None:
    if value % divisor:
        raise BadCheckpoint(
            f"{where} has {key} = {value} and {divisor_key} = {divisor}; the second must divide "
            "the first. Correct them."
        )
