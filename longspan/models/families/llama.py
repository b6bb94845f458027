"""Llama as Hugging Face transformers saves it: ``model_type: llama``, names ``model.layers.*``.

A block becomes two layers here, attention and MLP. RoPE is the unscaled one; a config that asks
for another is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longspan.errors import BadCheckpoint
from longspan.models.checkpoint import (
    Checkpoint,
    Weight,
    build,
    config_beside,
    copied,
    end_token,
    joined,
    tokenizer_beside,
)
from longspan.models.config import FullAttentionConfig, HeadsConfig, MlpConfig, ModelConfig
from longspan.models.foreign_config import Field, count, ignored, read_fields
from longspan.models.tensor_files import open_tensors

NAME = "llama"
TRAPS = """\
- `q_proj`, `k_proj` and `v_proj` become one matrix, their rows in this order; `gate_proj` and
  `up_proj` another.
- RoPE's base is `rope_theta`, or, as transformers 5 writes it, `rope_parameters.rope_theta`; where
  both are given they must agree. Scaled RoPE is refused.
- `num_key_value_heads` that is absent means as many as query heads; `head_dim` may differ from
  `hidden_size` / `num_attention_heads`.
- Older checkpoints hold `rotary_emb.inv_freq`, which nothing reads.
- The cache of keys and values grows with every token: the plan gives it its capacity.
- AnLLM's checkpoints are of this family: keys and names are Llama's, the vocabulary has one token
  more (`[PAD]`) or two (`<AC>`). `export --anchors ac` or `ep` makes them what they were trained
  to be; without it they keep every token.
"""
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FIELDS = {
    "model_type": Field(str, only=("llama",)),
    "hidden_size": count(),
    "intermediate_size": count(),
    "num_hidden_layers": count(),
    "num_attention_heads": count(),
    "num_key_value_heads": count(None),
    "head_dim": count(None),
    "vocab_size": count(),
    "hidden_act": Field(str, "silu", only=("silu",)),
    "rms_norm_eps": Field(float, 1e-6, positive=True),
    "rope_theta": Field(float, None, positive=True),
    "rope_scaling": Field(object, None),
    "rope_parameters": Field(object, None),
    "attention_bias": Field(bool, False),
    "mlp_bias": Field(bool, False),
    "tie_word_embeddings": Field(bool, False),
    **ignored(
        "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
        "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout",
        "max_position_embeddings", "max_sequence_length", "pretraining_tp", "_name_or_path",
    ),
}  # fmt: skip
ROPE_FIELDS = {
    "rope_theta": Field(float, None, positive=True),
    "rope_type": Field(str, "default", only=("default",)),
    # the name that older transformers wrote
    "type": Field(str, "default", only=("default",)),
}
ROPE_THETA = 10000.0


def detect(path: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether this is transformers' Llama: the config's model_type says so."""
    del path
    return config is not None and config.get("model_type") == "llama"


def open_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Open a transformers folder.

    Raises:
        BadCheckpoint: config or weights are not what longspan supports.
    """
    folder = path if path.is_dir() else path.parent
    where, data = config_beside(folder, config)
    model = model_config(data, where)
    return build(
        path,
        model,
        open_tensors(path),
        weights(model),
        optional=_optional(model),
        copies=(HEAD, EMBEDDING) if model.tied else None,
        tokenizer=tokenizer_beside(folder),
        eos=end_token(data, where),
    )


def model_config(data: Mapping[str, Any], where: str) -> ModelConfig:
    """The layers that a transformers config describes.

    Raises:
        BadCheckpoint: a key is unknown or missing, or has a value that is not supported.
    """
    values = read_fields(data, FIELDS, where=where, family=NAME)
    heads, groups = values["num_attention_heads"], values["num_key_value_heads"]
    attention = FullAttentionConfig(
        n_heads=heads,
        n_kv_heads=heads if groups is None else groups,
        head_dim=_head_dim(values, where),
        rope_base=_rope_theta(values, where),
        qkv_bias=values["attention_bias"],
        out_bias=values["attention_bias"],
    )
    if heads % attention.n_kv_heads:
        raise BadCheckpoint(
            f"{where} has num_attention_heads = {heads} and num_key_value_heads = {groups}; the "
            "second must divide the first. Correct them."
        )
    mlp = MlpConfig(d_ff=values["intermediate_size"], bias=values["mlp_bias"])
    return ModelConfig(
        family=NAME,
        vocab_size=values["vocab_size"],
        d_model=values["hidden_size"],
        layers=(attention, mlp) * values["num_hidden_layers"],
        norm_eps=values["rms_norm_eps"],
        tied=values["tie_word_embeddings"],
    )


def _head_dim(values: Mapping[str, Any], where: str) -> int:
    """Width of a head; half of it is turned against the other half, so it must be even."""
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if values["head_dim"] is None and width % heads:
        raise BadCheckpoint(
            f"{where} has hidden_size = {width} and num_attention_heads = {heads}, and no "
            "head_dim; without it, the second must divide the first. Correct them."
        )
    head_dim: int = values["head_dim"] or width // heads
    if head_dim % 2:
        raise BadCheckpoint(
            f"{where} has heads of width {head_dim}; it must be even, because RoPE turns one half "
            "against the other. Correct head_dim."
        )
    return head_dim


def _rope_theta(values: Mapping[str, Any], where: str) -> float:
    """RoPE's base: transformers 5 writes it into ``rope_parameters``, 4 beside the other keys."""
    found = {"rope_theta": values["rope_theta"]}
    for key in ("rope_scaling", "rope_parameters"):
        given = values[key]
        if given is None:
            continue
        if not isinstance(given, dict):
            raise BadCheckpoint(
                f"{where} has {key} = {json.dumps(given)}; it must be an object or null. "
                "Correct it."
            )
        rope = read_fields(given, ROPE_FIELDS, where=f"{where}, {key}", family=NAME)
        found[f"{key}.rope_theta"] = rope["rope_theta"]
    bases = {key: value for key, value in found.items() if value is not None}
    if len(set(bases.values())) > 1:
        said = " and ".join(f"{key} = {value}" for key, value in bases.items())
        raise BadCheckpoint(f"{where} has {said}; they must be equal. Correct them.")
    return float(next(iter(bases.values()), ROPE_THETA))


def _optional(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensors that may be there and change nothing.

    Older transformers saved RoPE's frequencies; today it computes them from the config, as
    longspan does, and looks at none that are saved.
    """
    head = {HEAD: (config.vocab_size, config.d_model)} if config.tied else {}
    attentions = [layer for layer in config.layers if isinstance(layer, FullAttentionConfig)]
    return head | {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": (layer.head_dim // 2,)
        for i, layer in enumerate(attentions)
    }


def weights(config: ModelConfig) -> Iterator[Weight]:
    """How each parameter of a decoder of attention and MLP in turn is made."""
    width, vocabulary = config.d_model, config.vocab_size
    yield copied("embedding", EMBEDDING, vocabulary, width)
    for i, layer in enumerate(config.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i // 2}."
        norm = "post_attention_layernorm" if isinstance(layer, MlpConfig) else "input_layernorm"
        yield copied(f"{ours}norm.weight", f"{theirs}{norm}.weight", width)
        if isinstance(layer, MlpConfig):
            yield from _mlp_weights(f"{ours}mixer.", f"{theirs}mlp.", layer, width)
        else:
            assert isinstance(layer, HeadsConfig), "a Llama block is attention and an MLP"
            yield from _attention_weights(f"{ours}mixer.", f"{theirs}self_attn.", layer, width)
    yield copied("norm.weight", "model.norm.weight", width)
    if not config.tied:
        yield copied("head", HEAD, vocabulary, width)


def _attention_weights(ours: str, theirs: str, layer: HeadsConfig, width: int) -> Iterator[Weight]:
    inner, narrow = layer.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
    rows = {"q_proj": inner, "k_proj": narrow, "v_proj": narrow}
    yield joined(f"{ours}qkv_proj.weight", theirs, rows, width)
    yield copied(f"{ours}out_proj.weight", f"{theirs}o_proj.weight", width, inner)
    if layer.qkv_bias:
        yield joined(f"{ours}qkv_proj.bias", theirs, rows, kind="bias")
    if layer.out_bias:
        yield copied(f"{ours}out_proj.bias", f"{theirs}o_proj.bias", width)


def _mlp_weights(ours: str, theirs: str, layer: MlpConfig, width: int) -> Iterator[Weight]:
    rows = {"gate_proj": layer.d_ff, "up_proj": layer.d_ff}
    yield joined(f"{ours}gate_up_proj.weight", theirs, rows, width)
    yield copied(f"{ours}down_proj.weight", f"{theirs}down_proj.weight", width, layer.d_ff)
    if layer.bias:
        yield joined(f"{ours}gate_up_proj.bias", theirs, rows, kind="bias")
        yield copied(f"{ours}down_proj.bias", f"{theirs}down_proj.bias", width)
