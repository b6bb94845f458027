"""Tiny checkpoints of every family, with weights that are random everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from longspan.errors import BadCheckpoint
from longspan.models.families import open_checkpoint

VOCABULARY, WIDTH, LAYERS, STATES, RANK = 24, 16, 2, 4, 3
INNER = 2 * WIDTH
HEADS, HEAD_DIM = 4, 8
# Exports a family with weights of a dtype, once a run; its value is an `ExportReport`.
Exported = Callable[[str, str], Any]


def random_weights(shapes: dict[str, tuple[int, ...]], *, seed: int = 7) -> dict[str, torch.Tensor]:
    """Normal weights; norms near one; A_log spread, so that channels forget at different rates."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        near_one = "norm" in name or "ln_f" in name or name.endswith(".D")
        weights[name] = 1 + 0.1 * noise if near_one else noise * (0.5 if "A_log" in name else 0.3)
    return weights


def mixer_shapes(prefix: str, *, bias: bool = False) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (2 * INNER, WIDTH),
        "conv1d.weight": (INNER, 1, 4),
        "conv1d.bias": (INNER,),
        "x_proj.weight": (RANK + 2 * STATES, INNER),
        "dt_proj.weight": (INNER, RANK),
        "dt_proj.bias": (INNER,),
        "A_log": (INNER, STATES),
        "D": (INNER,),
        "out_proj.weight": (WIDTH, INNER),
    }
    if bias:
        shapes |= {"in_proj.bias": (2 * INNER,), "out_proj.bias": (WIDTH,)}
    return {prefix + name: shape for name, shape in shapes.items()}


def mixer2_shapes(
    prefix: str, *, groups: int = 2, skip: int = HEADS, norm: bool = True
) -> dict[str, tuple[int, ...]]:
    """A Mamba-2 mixer's tensors; `skip` numbers in D."""
    channels = INNER + 2 * groups * STATES
    shapes: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (INNER + channels + HEADS, WIDTH),
        "conv1d.weight": (channels, 1, 4),
        "conv1d.bias": (channels,),
        "dt_bias": (HEADS,),
        "A_log": (HEADS,),
        "D": (skip,),
        "out_proj.weight": (WIDTH, INNER),
    }
    if norm:
        shapes["norm.weight"] = (INNER,)
    return {prefix + name: shape for name, shape in shapes.items()}


def backbone_shapes(
    *,
    embedding: str,
    tied: bool = True,
    mixer: Callable[..., dict[str, tuple[int, ...]]] = mixer_shapes,
    **more: Any,
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"backbone.{embedding}.weight": (VOCABULARY, WIDTH)}
    for i in range(LAYERS):
        shapes[f"backbone.layers.{i}.norm.weight"] = (WIDTH,)
        shapes |= mixer(f"backbone.layers.{i}.mixer.", **more)
    shapes["backbone.norm_f.weight"] = (WIDTH,)
    return shapes if tied else shapes | {"lm_head.weight": (VOCABULARY, WIDTH)}


MAMBA_CONFIG = {
    "d_model": WIDTH,
    "n_layer": LAYERS,
    "vocab_size": VOCABULARY - 3,  # padded to a multiple of 8
    "ssm_cfg": {"d_state": STATES, "dt_rank": RANK},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
MAMBA2_SSM = {"layer": "Mamba2", "d_state": STATES, "headdim": HEAD_DIM, "ngroups": 2}
MAMBA2_CONFIG = MAMBA_CONFIG | {
    "vocab_size": VOCABULARY - 9,  # padded to a multiple of 12
    "pad_vocab_size_multiple": 12,
    "ssm_cfg": MAMBA2_SSM,
    "attn_layer_idx": [],
    "attn_cfg": {},
    "d_intermediate": 0,
}
HF_MAMBA2_CONFIG = {
    "model_type": "mamba2",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "num_heads": HEADS,
    "head_dim": HEAD_DIM,
    "state_size": STATES,
    "n_groups": 2,
    "tie_word_embeddings": True,
    "time_step_limit": [0.0, {"__float__": "Infinity"}],
    "eos_token_id": 5,
}
HF_CONFIG = {
    "model_type": "mamba",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "state_size": STATES,
    "conv_kernel": 4,
    "expand": 2,
    "time_step_rank": RANK,
    "eos_token_id": 5,
}
SAMBA_CONFIG = {
    "name": "Samba_tiny",
    "n_layer": 2,
    "n_embd": WIDTH,
    "n_head": 4,
    "n_query_groups": 2,
    "intermediate_size": 20,
    "local_window": 5,
    "mb_per_layer": 2,
    "padded_vocab_size": VOCABULARY,
    "norm_eps": 1e-5,
    "rotary_percentage": 1.0,
    "bias": False,
    "parallel_residual": False,
    "_norm_class": "FusedRMSNorm",
    "_mlp_class": "LLaMAMLP",
    "mamba_init": True,
}


# The models that Samba's paper compares it with: what each changes in the config.
SAMBA_VARIANTS: dict[str, dict[str, Any]] = {
    "samba": {},
    "mamba-swa-mlp": {"mamba_swa_mlp": True},
    "nope": {"nope": True},
    "one kv head": {"n_query_groups": 1, "rope_base": 500.0},
    "swa": {"mb_per_layer": -1, "mamba_init": False},
    "mlp2-swa-mlp": {"abl_mamba": True},
    "sliding gla": {"mb_per_layer": -1, "gla_per_layer": 2},
    "sliding retnet": {"mb_per_layer": -1, "ret_per_layer": 2},
}
# Of the tiny gated linear attention: lit_gpt's own heads are 384 wide.
GLA_HEADS, GLA_RANK = 2, 3


def samba_mixer(config: dict[str, Any], i: int) -> str:
    """What block `i` mixes with, as lit_gpt decides."""
    rules = (("mb_per_layer", "mamba"), ("ret_per_layer", "retention"), ("gla_per_layer", "gla"))
    for key, name in rules:
        if config.get(key, -1) > 0 and i % config[key] == 0:
            return "mlp" if name == "mamba" and config.get("abl_mamba") else name
    return "attention"


def mlp_shapes(prefix: str, d_ff: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}swiglu.{w}.weight": (d_ff, WIDTH) for w in ("w1", "w2")
    }
    return shapes | {f"{prefix}swiglu.w3.weight": (WIDTH, d_ff)}


def gla_shapes(prefix: str, *, gated: bool) -> dict[str, tuple[int, ...]]:
    """Gated linear attention's tensors; not gated, retention's."""
    keys, values = (WIDTH // 2, WIDTH) if gated else (WIDTH, 2 * WIDTH)
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj.weight": (keys, WIDTH),
        "k_proj.weight": (keys, WIDTH),
        "v_proj.weight": (values, WIDTH),
        "g_proj.weight": (values, WIDTH),
        "g_norm_swish_gate.weight": (values // GLA_HEADS,),
        "o_proj.weight": (WIDTH, values),
    }
    if gated:
        shapes |= {
            "gk_proj.0.weight": (GLA_RANK, WIDTH),
            "gk_proj.1.weight": (keys, GLA_RANK),
            "gk_proj.1.bias": (keys,),
        }
    return {prefix + name: shape for name, shape in shapes.items()}


def samba_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width = WIDTH
    head = width // config["n_head"]
    rows = (config["n_head"] + 2 * config["n_query_groups"]) * head
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (VOCABULARY, width)}
    for i in range(config["n_layer"]):
        at = f"transformer.h.{i}."
        attention = {
            f"{at}attn.attn.weight": (rows, width),
            f"{at}attn.proj.weight": (width, width),
        }
        if config.get("mamba_swa_mlp"):
            shapes |= {f"{at}norm_m.weight": (width,), f"{at}norm_attn.weight": (width,)}
            shapes |= mixer_shapes(f"{at}mb.") | attention
        else:
            shapes[f"{at}norm_1.weight"] = (width,)
            shapes |= {
                "attention": attention,
                "mamba": mixer_shapes(f"{at}attn."),
                "mlp": mlp_shapes(f"{at}attn.", 2 * width),
                "gla": gla_shapes(f"{at}attn.", gated=True),
                "retention": gla_shapes(f"{at}attn.", gated=False),
            }[samba_mixer(config, i)]
        shapes[f"{at}norm_2.weight"] = (width,)
        shapes |= mlp_shapes(f"{at}mlp.", config["intermediate_size"])
    shapes["transformer.ln_f.weight"] = (width,)
    return shapes if config["mamba_init"] else shapes | {"lm_head.weight": (VOCABULARY, width)}


def write_mamba(folder: Path, *, kind: str = "bin", **changes: Any) -> dict[str, torch.Tensor]:
    """A mamba_ssm folder: one pickle, one safetensors, or two shards of either."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MAMBA_CONFIG | changes), encoding="utf-8")
    tied = changes.get("tie_embeddings", True)
    weights = random_weights(backbone_shapes(embedding="embedding", tied=tied))
    if tied:
        weights["lm_head.weight"] = weights["backbone.embedding.weight"].clone()
    write_weights(folder, weights, kind)
    return weights


def write_weights(folder: Path, weights: dict[str, torch.Tensor], kind: str) -> None:
    save = {"bin": torch.save, "safetensors": save_file}[kind.removeprefix("sharded ")]
    name = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}[kind.split()[-1]]
    if not kind.startswith("sharded "):
        save(weights, folder / name)
        return
    shards = {f"{i}-{name}": dict(list(weights.items())[i::2]) for i in range(2)}
    for shard, part in shards.items():
        save(part, folder / shard)
    index = {"weight_map": {tensor: shard for shard, part in shards.items() for tensor in part}}
    (folder / f"{name}.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_hf(folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(HF_CONFIG | changes), encoding="utf-8")
    tied = changes.get("tie_word_embeddings", True)
    weights = random_weights(backbone_shapes(embedding="embeddings", tied=tied))
    save_file({name: w.to(dtype) for name, w in weights.items()}, folder / "model.safetensors")


def write_mamba2(folder: Path, **ssm: Any) -> dict[str, torch.Tensor]:
    """A mamba_ssm folder of Mamba-2 layers, with changes to its ``ssm_cfg``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = MAMBA2_CONFIG | {"ssm_cfg": MAMBA2_SSM | ssm}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes = backbone_shapes(
        embedding="embedding",
        mixer=mixer2_shapes,
        groups=ssm.get("ngroups", 2),
        skip=INNER if ssm.get("D_has_hdim") else HEADS,
        norm=ssm.get("rmsnorm", True),
    )
    weights = random_weights(shapes)
    write_weights(folder, weights, "bin")
    return weights


def write_hf_mamba2(folder: Path, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(HF_MAMBA2_CONFIG | changes), encoding="utf-8")
    weights = random_weights(backbone_shapes(embedding="embeddings", mixer=mixer2_shapes))
    save_file(weights, folder / "model.safetensors")


def write_falcon_mamba(folder: Path) -> None:
    write_hf(folder, model_type="falcon_mamba", mixer_rms_eps=1e-3)


def write_samba(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    config = SAMBA_CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = random_weights(samba_shapes(config))
    torch.save({"model": weights}, folder / "samba.pth")
    return weights


def write_tokenizer(path: Path, size: int = VOCABULARY) -> Path:
    vocabulary = {chr(97 + i): i for i in range(size)}
    Tokenizer(models.BPE(vocabulary, [])).save(str(path))
    return path


def write_config(folder: Path, data: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def refusal(path: Path, config: Path | None = None) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        open_checkpoint(path, config)
    return str(caught.value)
