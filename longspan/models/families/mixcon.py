"""MixCon in longspan's own format: ``model_type: mixcon``, safetensors, names ``model.layers.*``.

No checkpoint of MixCon is public; docs/mixcon.md defines the model, the keys and the names. A block
becomes two layers here: attention or Conba, then an MLP or a mixture of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
from longspan.models.config import (
    ConbaConfig,
    FullAttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
)
from longspan.models.families.mixcon_config import model_config
from longspan.models.families.mixer import negative_exp
from longspan.models.tensor_files import open_tensors

NAME = "mixcon"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
TRAPS = """\
- There is no public checkpoint: docs/mixcon.md defines the format, and Conba as longspan defines
  it.
- Attention has no positional encoding unless `rope_theta` says so.
- The weights of the chosen experts are the softmax over all of them, not renormalised unless
  `norm_topk_prob` says so.
"""


def detect(path: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether this is a MixCon: the config's model_type says so."""
    del path
    return config is not None and config.get("model_type") == NAME


def open_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Open a folder in longspan's format.

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
        optional={HEAD: (model.vocab_size, model.d_model)} if model.tied else {},
        copies=(HEAD, EMBEDDING) if model.tied else None,
        tokenizer=tokenizer_beside(folder),
        eos=end_token(data, where),
    )


def weights(config: ModelConfig) -> Iterator[Weight]:
    """How each parameter of a MixCon is made."""
    width, vocabulary = config.d_model, config.vocab_size
    yield copied("embedding", EMBEDDING, vocabulary, width)
    for i, layer in enumerate(config.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i // 2}."
        norm = "pre_ff_layernorm" if i % 2 else "input_layernorm"
        yield copied(f"{ours}norm.weight", f"{theirs}{norm}.weight", width)
        yield from _mixer_weights(f"{ours}mixer.", theirs, layer, width)
    yield copied("norm.weight", "model.final_layernorm.weight", width)
    if not config.tied:
        yield copied("head", HEAD, vocabulary, width)


def _mixer_weights(ours: str, theirs: str, layer: LayerConfig, width: int) -> Iterator[Weight]:
    if isinstance(layer, FullAttentionConfig):
        return _attention_weights(ours, f"{theirs}self_attn.", layer, width)
    if isinstance(layer, ConbaConfig):
        return _conba_weights(ours, f"{theirs}conba.", layer, width)
    if isinstance(layer, MlpConfig):
        return _mlp_weights(ours, f"{theirs}feed_forward.", layer, width)
    assert isinstance(layer, MoeConfig), "MixCon has no other layer"
    return _moe_weights(ours, f"{theirs}feed_forward.", layer, width)


def _attention_weights(
    ours: str, theirs: str, layer: FullAttentionConfig, width: int
) -> Iterator[Weight]:
    inner, narrow = layer.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
    rows = {"q_proj": inner, "k_proj": narrow, "v_proj": narrow}
    yield joined(f"{ours}qkv_proj.weight", theirs, rows, width)
    yield copied(f"{ours}out_proj.weight", f"{theirs}o_proj.weight", width, inner)


def _conba_weights(ours: str, theirs: str, layer: ConbaConfig, width: int) -> Iterator[Weight]:
    heads, states, outputs = layer.n_heads, layer.d_state, layer.head_dim
    modules = ["select_gate_proj", "select_up_proj", "scale_proj", "desired_proj", "gate_proj"]
    if layer.gain == "off":
        modules.remove("desired_proj")
    rows = dict(zip(modules, layer.in_rows, strict=True))
    yield joined(f"{ours}in_proj.weight", theirs, rows, width)
    flat = heads * states
    yield copied(
        f"{ours}select_proj.weight", f"{theirs}select_down_proj.weight", flat, layer.d_select
    )
    yield Weight(
        name=f"{ours}dt_bias",
        sources={f"{theirs}scale_proj.bias": (flat,)},
        make=lambda bias: bias.view(heads, states),
    )
    yield Weight(name=f"{ours}A", sources={f"{theirs}A_log": (heads, states)}, make=negative_exp)
    yield copied(f"{ours}w_tau", f"{theirs}w_tau", heads, states)
    yield copied(f"{ours}C", f"{theirs}C", heads, outputs, states)
    yield copied(f"{ours}D", f"{theirs}D", heads, outputs)
    yield copied(f"{ours}norm.weight", f"{theirs}norm.weight", width)
    yield copied(f"{ours}out_proj.weight", f"{theirs}out_proj.weight", width, width)


def _mlp_weights(ours: str, theirs: str, layer: MlpConfig, width: int) -> Iterator[Weight]:
    rows = {"gate_proj": layer.d_ff, "up_proj": layer.d_ff}
    yield joined(f"{ours}gate_up_proj.weight", theirs, rows, width)
    yield copied(f"{ours}down_proj.weight", f"{theirs}down_proj.weight", width, layer.d_ff)


def _moe_weights(ours: str, theirs: str, layer: MoeConfig, width: int) -> Iterator[Weight]:
    experts, d_ff = layer.n_experts, layer.d_ff
    yield copied(f"{ours}router.weight", f"{theirs}router.weight", experts, width)
    shapes = {"gate_up_proj": (2 * d_ff, width), "down_proj": (width, d_ff)}
    for name, shape in shapes.items():
        yield copied(f"{ours}{name}.weight", f"{theirs}experts.{name}", experts, *shape)
