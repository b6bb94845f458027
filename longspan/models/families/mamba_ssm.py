"""What both mamba_ssm families share around their mixers: attention layers and gated MLPs.

A block of mamba_ssm (modules/block.py) is one residual layer, or two where `d_intermediate` adds an
MLP. The blocks that `attn_layer_idx` names attend over all tokens (modules/mha.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from longspan.errors import BadCheckpoint
from longspan.models.checkpoint import Weight, copied
from longspan.models.config import FullAttentionConfig, LayerConfig, MlpConfig
from longspan.models.foreign_config import Field, count, read_fields

BLOCK_TRAPS = """\
- `mlp.fc1` has the rows [up, gate], and `d_intermediate` is rounded up to a multiple of 128.
- Attention is causal only where `attn_cfg` says so: a config that does not is refused.
- Attention's `conv1d` reads queries, keys and values before RoPE, without an activation. Its last
  inputs are state; mamba_ssm's own prefill keeps outputs in their place, so its steps differ.
- RoPE turns the first `rotary_emb_dim` channels of a head, in halves, or in pairs with
  `rotary_emb_interleaved`; with 0, the default, there is none.
- `qkv_proj_bias` and `out_proj_bias` are true where they are absent.
"""
ATTENTION_FIELDS = {
    "num_heads": count(),
    "num_heads_kv": count(None),
    "head_dim": count(None),
    "causal": Field(bool, only=(True,)),
    "d_conv": Field(int, 0),
    "rotary_emb_dim": Field(int, 0),
    "rotary_emb_base": Field(float, 10000.0, positive=True),
    "rotary_emb_interleaved": Field(bool, False),
    "qkv_proj_bias": Field(bool, True),
    "out_proj_bias": Field(bool, True),
    "mlp_dim": Field(int, 0, only=(0,)),
    "softmax_scale": Field(float, None, only=(None,)),
}
MLP_MULTIPLE = 128


def block_layers(
    values: Mapping[str, Any], mixer: LayerConfig, *, where: str, family: str
) -> tuple[LayerConfig, ...]:
    """The layers of all blocks.

    Args:
        values: the checked values of a config.
        mixer: that of the blocks without attention.
        where: what to call the config in a message.
        family: name of the family.

    Raises:
        BadCheckpoint: a value contradicts another, or is not supported.
    """
    blocks = values["n_layer"]
    with_attention = _attention_blocks(values["attn_layer_idx"], blocks, where)
    attention = _attention(values, where, family) if with_attention else None
    mlp = _mlp(values["d_intermediate"], where)
    layers: list[LayerConfig] = []
    for i in range(blocks):
        layers.append(attention if attention is not None and i in with_attention else mixer)
        layers += mlp
    return tuple(layers)


def _attention_blocks(given: list[Any], blocks: int, where: str) -> set[int]:
    numbers = {each for each in given if isinstance(each, int) and 0 <= each < blocks}
    if len(numbers) != len(given):
        raise BadCheckpoint(
            f"{where} has attn_layer_idx = {json.dumps(given)}; it must be a list of different "
            f"whole numbers from 0 to {blocks - 1}, one for each layer with attention. Correct it."
        )
    return numbers


def _mlp(d_intermediate: int, where: str) -> tuple[MlpConfig, ...]:
    if d_intermediate < 0:
        raise BadCheckpoint(
            f"{where} has d_intermediate = {d_intermediate}; it must be 0, for no MLP, or the "
            "width of one. Correct it."
        )
    d_ff = -(-d_intermediate // MLP_MULTIPLE) * MLP_MULTIPLE
    return (MlpConfig(d_ff=d_ff),) if d_ff else ()


def _attention(values: Mapping[str, Any], where: str, family: str) -> FullAttentionConfig:
    where = f"{where}, attn_cfg"
    given = read_fields(values["attn_cfg"], ATTENTION_FIELDS, where=where, family=family)
    heads, width = given["num_heads"], values["d_model"]
    groups = given["num_heads_kv"] or heads
    if heads % groups or (given["head_dim"] is None and width % heads):
        raise BadCheckpoint(
            f"{where} has num_heads = {heads}, num_heads_kv = {groups} and d_model = {width}; "
            "num_heads must be a multiple of num_heads_kv, and d_model of num_heads unless "
            "head_dim is given. Correct them."
        )
    head_dim = given["head_dim"] or width // heads
    turned, taps = given["rotary_emb_dim"], given["d_conv"]
    if turned % 2 or not 0 <= turned <= head_dim:
        raise BadCheckpoint(
            f"{where} has rotary_emb_dim = {turned}; it must be even, and at most the width of a "
            f"head, {head_dim}. Correct it."
        )
    if taps < 0 or taps == 1:
        raise BadCheckpoint(
            f"{where} has d_conv = {taps}; it must be 0, for no convolution, or its width, at "
            "least 2. Correct it."
        )
    return FullAttentionConfig(
        n_heads=heads,
        n_kv_heads=groups,
        head_dim=head_dim,
        rope_base=given["rotary_emb_base"] if turned else None,
        rope_dims=turned or None,
        rope_interleaved=given["rotary_emb_interleaved"],
        qkv_bias=given["qkv_proj_bias"],
        out_bias=given["out_proj_bias"],
        d_conv=taps or None,
    )


def mlp_weights(ours: str, theirs: str, layer: MlpConfig, width: int) -> Iterator[Weight]:
    """How each parameter of a gated MLP is made; its rows are turned from [up, gate]."""
    yield Weight(
        name=f"{ours}gate_up_proj.weight",
        sources={f"{theirs}fc1.weight": (2 * layer.d_ff, width)},
        make=lambda fc1: torch.cat([fc1[layer.d_ff :], fc1[: layer.d_ff]]),
    )
    yield copied(f"{ours}down_proj.weight", f"{theirs}fc2.weight", width, layer.d_ff)


def attention_weights(
    ours: str, theirs: str, layer: FullAttentionConfig, width: int
) -> Iterator[Weight]:
    """How each parameter of attention is made; both sides have the rows [q, k, v]."""
    inner = layer.n_heads * layer.head_dim
    yield copied(f"{ours}qkv_proj.weight", f"{theirs}in_proj.weight", layer.qkv_rows, width)
    yield copied(f"{ours}out_proj.weight", f"{theirs}out_proj.weight", width, inner)
    if layer.qkv_bias:
        yield copied(f"{ours}qkv_proj.bias", f"{theirs}in_proj.bias", layer.qkv_rows)
    if layer.out_bias:
        yield copied(f"{ours}out_proj.bias", f"{theirs}out_proj.bias", width)
    if layer.d_conv is not None:
        conv = (layer.qkv_rows, 1, layer.d_conv)
        yield copied(f"{ours}conv_weight", f"{theirs}conv1d.weight", *conv)
        yield copied(f"{ours}conv_bias", f"{theirs}conv1d.bias", layer.qkv_rows)
