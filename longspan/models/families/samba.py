"""microsoft/Samba as lit_gpt saves it: a ``.pth`` with the key ``model``.

One block of the repository becomes two or three layers here: mixer and MLP, or in the
Mamba-SWA-MLP variant Mamba, attention and MLP; pure Mamba has one. The paper's comparisons are the
same file with other mixers: retention, gated linear attention, an MLP, or attention alone. Its bf16
RoPE table is not imitated: it is a rounding of its training, wrong by up to 2^-9 of a turn at any
position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from longspan.errors import BadCheckpoint
from longspan.models.checkpoint import (
    Checkpoint,
    Weight,
    build,
    copied,
    joined,
    tokenizer_beside,
)
from longspan.models.config import (
    GlaConfig,
    HeadsConfig,
    MambaConfig,
    MlpConfig,
    ModelConfig,
)
from longspan.models.families.mixer import mamba_weights
from longspan.models.families.samba_blocks import Block, Mixer, blocks
from longspan.models.families.samba_config import config_values, tied_head
from longspan.models.foreign_config import load_config
from longspan.models.tensor_files import PickleFile, TensorFiles

NAME = "samba"
FILES = ("*.pth",)
TRAPS = """\
- `attn.attn.weight` packs its rows by key group: the group's queries, its key, its value. They are
  sorted into queries, keys, values.
- `n_layer` counts blocks; a block is two residual layers here, three in the Mamba-SWA-MLP variant,
  one in a pure Mamba.
- State size, convolution width and rank of dt stand in no config, nor do heads and rank of gated
  linear attention: they are read from the shapes. Attention's heads and window cannot be, so a size
  that was not published needs a config.
- What a block mixes with, whose module is `attn` whatever it is: a list of attention blocks,
  `attn_layer_pos` (also as Python text), leaves the others to Mamba. Without one, block i is the
  first of Mamba (`mb_per_layer`), retention (`ret_per_layer`) and gated linear attention
  (`gla_per_layer`) whose period divides i, and attention if none does. With `abl_mamba` a SwiGLU
  MLP of 2 `n_embd` stands in Mamba's place.
- Attention has a window of `local_window`, or none where that is not above zero, and none in the
  last block of every `full_per_layer`; without a window its cache grows with every token.
- Retention has `n_head` // 2 heads, and rotates queries and keys with base 10,000 whatever `nope`
  says.
- No key of lit_gpt says whether the head is tied: it is where weights start as Mamba's (`mamba`,
  `mamba_init`), or where no `lm_head.weight` is stored. `tied` overrides that.
- The vocabulary is padded to a multiple of `padding_multiple`, 512 unless it is given.
- The window of W tokens counts the current one, so W - 1 keys are kept.
- lit_gpt's table of RoPE is rounded to bfloat16; angles here are exact.
"""
SUFFIXES = (".pth", ".pt", ".ckpt")
EMBEDDING = "transformer.wte.weight"
HEAD = "lm_head.weight"


def detect(path: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether this is a Samba checkpoint: a .pth file, or a folder with one and no other config."""
    if config is not None and not {"n_layer", "n_embd"} <= {*config}:
        return False
    return path.suffix in SUFFIXES if path.is_file() else any(path.glob("*.pth"))


def open_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Open a ``.pth`` file, or a folder that holds one.

    Raises:
        BadCheckpoint: config or weights are not what longspan supports.
    """
    file = _weights_file(path)
    files = PickleFile(file, key="model")
    beside = config or file.parent / "config.json"
    given = load_config(beside) if config is not None or beside.is_file() else None
    values = config_values(given, str(beside), files)
    model = model_config(values, files)
    shape = (model.vocab_size, model.d_model)
    return build(
        path,
        model,
        files,
        weights(model, blocks(values, files)),
        optional={HEAD: shape} if model.tied else {},
        copies=(HEAD, EMBEDDING) if model.tied else None,
        tokenizer=tokenizer_beside(file.parent),
        eos=values["eos_token_id"],
    )


def model_config(values: Mapping[str, Any], files: TensorFiles) -> ModelConfig:
    """The layers that the checked values of a config describe.

    Args:
        values: as `config_values` gives them.
        files: the tensors, whose shapes tell what lit_gpt's config does not.
    """
    return ModelConfig(
        family=NAME,
        vocab_size=values["padded_vocab_size"],
        d_model=values["n_embd"],
        layers=tuple(mixer.config for block in blocks(values, files) for mixer in block),
        norm_eps=values["norm_eps"],
        tied=tied_head(values, files),
    )


def split_packed_qkv(packed: torch.Tensor, config: HeadsConfig) -> torch.Tensor:
    """Sort the rows of lit_gpt's QKV matrix into queries, keys, values.

    Args:
        packed: float [(H + 2G) P, D], for each of the G groups its queries, its key, its value.
        config: the attention's sizes.

    Returns:
        The same rows, all queries first, then all keys, then all values.
    """
    per_group = config.n_heads // config.n_kv_heads
    rows = packed.view(config.n_kv_heads, per_group + 2, config.head_dim, packed.shape[1])
    parts = rows[:, :per_group], rows[:, per_group], rows[:, per_group + 1]
    return torch.cat([part.reshape(-1, packed.shape[1]) for part in parts])


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.pth"))
    if len(found) != 1:
        raise BadCheckpoint(
            f"{path} was asked for as a samba checkpoint and holds {len(found)} .pth files "
            f"({', '.join(file.name for file in found)}). It must hold one. Name the file itself."
        )
    return found[0]


def weights(config: ModelConfig, in_blocks: list[Block]) -> Iterator[Weight]:
    """How each parameter is made, of the layers that stand in these blocks."""
    yield copied("embedding", EMBEDDING, config.vocab_size, config.d_model)
    numbered = (
        (i, mixer) for i, block in enumerate(in_blocks) for mixer in block
    )  # layers count mixers, the checkpoint counts blocks
    for layer, (i, mixer) in enumerate(numbered):
        theirs = f"transformer.h.{i}."
        yield copied(f"layers.{layer}.norm.weight", f"{theirs}{mixer.norm}.weight", config.d_model)
        yield from _mixer_weights(f"layers.{layer}.mixer.", theirs, mixer, config.d_model)
    yield copied("norm.weight", "transformer.ln_f.weight", config.d_model)
    if not config.tied:
        yield copied("head", HEAD, config.vocab_size, config.d_model)


def _mixer_weights(ours: str, theirs: str, mixer: Mixer, width: int) -> tuple[Weight, ...]:
    layer, theirs = mixer.config, f"{theirs}{mixer.module}."
    if isinstance(layer, HeadsConfig):
        return _attention_weights(ours, theirs, layer, width)
    if isinstance(layer, MlpConfig):
        return _mlp_weights(ours, theirs, layer, width)
    if isinstance(layer, GlaConfig):
        return _gla_weights(ours, theirs, layer, width)
    assert isinstance(layer, MambaConfig), "lit_gpt's Samba has no other mixer"
    return mamba_weights(ours, theirs, layer, width)


def _attention_weights(
    ours: str, theirs: str, layer: HeadsConfig, width: int
) -> tuple[Weight, ...]:
    qkv = Weight(
        name=f"{ours}qkv_proj.weight",
        sources={f"{theirs}attn.weight": (layer.qkv_rows, width)},
        make=lambda packed: split_packed_qkv(packed, layer),
    )
    inner = layer.n_heads * layer.head_dim
    return qkv, copied(f"{ours}out_proj.weight", f"{theirs}proj.weight", width, inner)


def _mlp_weights(ours: str, theirs: str, layer: MlpConfig, width: int) -> tuple[Weight, ...]:
    shape = (layer.d_ff, width)
    gate_up = Weight(
        name=f"{ours}gate_up_proj.weight",
        sources={f"{theirs}swiglu.w1.weight": shape, f"{theirs}swiglu.w2.weight": shape},
        make=lambda gate, up: torch.cat([gate, up]),
    )
    down = copied(f"{ours}down_proj.weight", f"{theirs}swiglu.w3.weight", width, layer.d_ff)
    return gate_up, down


def _gla_weights(ours: str, theirs: str, layer: GlaConfig, width: int) -> tuple[Weight, ...]:
    keys, values = layer.n_heads * layer.key_dim, layer.n_heads * layer.value_dim
    rows = {"q_proj": keys, "k_proj": keys, "v_proj": values, "g_proj": values}
    norm = copied(f"{ours}norm_weight", f"{theirs}g_norm_swish_gate.weight", layer.value_dim)
    out = copied(f"{ours}out_proj.weight", f"{theirs}o_proj.weight", width, values)
    if layer.gate_rank is None:
        return joined(f"{ours}in_proj.weight", theirs, rows, width), norm, out
    rows["gk_proj.0"] = layer.gate_rank
    return (
        joined(f"{ours}in_proj.weight", theirs, rows, width),
        copied(f"{ours}decay_proj.weight", f"{theirs}gk_proj.1.weight", keys, layer.gate_rank),
        copied(f"{ours}decay_proj.bias", f"{theirs}gk_proj.1.bias", keys),
        norm,
        out,
    )
