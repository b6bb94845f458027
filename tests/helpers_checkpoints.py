"""Tiny checkpoints of every family, with weights that are random everywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models

from longspan.errors import BadCheckpoint
from longspan.models.decoder import Decoder
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
    vocabulary: int = VOCABULARY,
    norms: tuple[str, ...] = ("weight",),
    **more: Any,
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"backbone.{embedding}.weight": (vocabulary, WIDTH)}
    for i in range(LAYERS):
        shapes |= {f"backbone.layers.{i}.norm.{name}": (WIDTH,) for name in norms}
        shapes |= mixer(f"backbone.layers.{i}.mixer.", **more)
    shapes |= {f"backbone.norm_f.{name}": (WIDTH,) for name in norms}
    return shapes if tied else shapes | {"lm_head.weight": (vocabulary, WIDTH)}


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
# As published: it says RMSNorm over weights of LayerNorm, and nothing of a head of its own.
MAMBABYTE_CONFIG = MAMBA_CONFIG | {"vocab_size": 256, "pad_id": 0}
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
LLAMA_CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 20,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "attention_bias": True,
    "eos_token_id": 5,
}
MIXCON_CONFIG: dict[str, Any] = {
    "model_type": "mixcon",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "intermediate_size": 20,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "conba": {"head_dim": HEAD_DIM, "d_state": STATES, "d_select": 12, "tau": 2, "eta": 0.2},
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
    "attention to all": {"mb_per_layer": -1, "local_window": -1},
    "one block to all": {"full_per_layer": 2},
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
        attention: dict[str, tuple[int, ...]] = {
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


def write_mambabyte(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """A MambaByte folder: LayerNorm, and a head that is not the embedding."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MAMBABYTE_CONFIG | changes), encoding="utf-8")
    weights = random_weights(
        backbone_shapes(embedding="embedding", tied=False, vocabulary=256, norms=("weight", "bias"))
    )
    write_weights(folder, weights, "bin")
    return weights


def write_weights(folder: Path, weights: dict[str, torch.Tensor], kind: str) -> None:
    savers: dict[str, Callable[[dict[str, torch.Tensor], Path], object]] = {
        "bin": torch.save,
        "safetensors": save_file,
    }
    save = savers[kind.removeprefix("sharded ")]
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


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, d_ff = config["hidden_size"], config["intermediate_size"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", width // heads)
    rows = {"q": heads * head, "k": groups * head, "v": groups * head}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, width)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        attention = {f"{at}self_attn.{name}_proj": (count, width) for name, count in rows.items()}
        attention[f"{at}self_attn.o_proj"] = (width, heads * head)
        mlp = {f"{at}mlp.{name}_proj": (d_ff, width) for name in ("gate", "up")}
        mlp[f"{at}mlp.down_proj"] = (width, d_ff)
        for key, part in (("attention_bias", attention), ("mlp_bias", mlp)):
            shapes |= {f"{name}.weight": shape for name, shape in part.items()}
            if config.get(key):
                shapes |= {f"{name}.bias": shape[:1] for name, shape in part.items()}
        shapes |= {f"{at}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (width,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (VOCABULARY, width)
    return shapes


def write_llama(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    config = LLAMA_CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = random_weights(llama_shapes(config))
    save_file(weights, folder / "model.safetensors")
    return weights


def conba_shapes(prefix: str, conba: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    heads, states, inner = WIDTH // conba["head_dim"], conba["d_state"], conba["d_select"]
    shapes: dict[str, tuple[int, ...]] = {
        "select_gate_proj.weight": (inner, WIDTH),
        "select_up_proj.weight": (inner, WIDTH),
        "select_down_proj.weight": (heads * states, inner),
        "scale_proj.weight": (heads * states, WIDTH),
        "scale_proj.bias": (heads * states,),
        "A_log": (heads, states),
        "w_tau": (heads, states),
        "C": (heads, conba["head_dim"], states),
        "D": (heads, conba["head_dim"]),
        "gate_proj.weight": (WIDTH, WIDTH),
        "norm.weight": (WIDTH,),
        "out_proj.weight": (WIDTH, WIDTH),
    }
    if conba.get("gain") != "off":
        shapes["desired_proj.weight"] = (WIDTH, WIDTH)
    return {prefix + name: shape for name, shape in shapes.items()}


def mixcon_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d_ff, experts = config["intermediate_size"], config["num_experts"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head = WIDTH // heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes |= {f"{at}{name}_layernorm.weight": (WIDTH,) for name in ("input", "pre_ff")}
        if i % config.get("attn_layer_period", 4) == config.get("attn_layer_offset", 2):
            rows = {"q": heads * head, "k": groups * head, "v": groups * head}
            shapes |= {f"{at}self_attn.{n}_proj.weight": (r, WIDTH) for n, r in rows.items()}
            shapes[f"{at}self_attn.o_proj.weight"] = (WIDTH, heads * head)
        else:
            shapes |= conba_shapes(f"{at}conba.", config["conba"])
        if i % 2:
            shapes[f"{at}feed_forward.router.weight"] = (experts, WIDTH)
            shapes[f"{at}feed_forward.experts.gate_up_proj"] = (experts, 2 * d_ff, WIDTH)
            shapes[f"{at}feed_forward.experts.down_proj"] = (experts, WIDTH, d_ff)
        else:
            shapes |= {f"{at}feed_forward.{n}_proj.weight": (d_ff, WIDTH) for n in ("gate", "up")}
            shapes[f"{at}feed_forward.down_proj.weight"] = (WIDTH, d_ff)
    shapes["model.final_layernorm.weight"] = (WIDTH,)
    tied = config.get("tie_word_embeddings", False)
    return shapes if tied else shapes | {"lm_head.weight": (VOCABULARY, WIDTH)}


def write_mixcon(
    folder: Path, *, conba: dict[str, Any] | None = None, **changes: Any
) -> dict[str, torch.Tensor]:
    """A MixCon folder, with changes to its config and to the config's ``conba``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = MIXCON_CONFIG | changes
    config["conba"] = MIXCON_CONFIG["conba"] | (conba or {})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = random_weights(mixcon_shapes(config))
    save_file(weights, folder / "model.safetensors")
    return weights


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


def write_letters(folder: Path, *, stops: tuple[str, ...] = (".",), ac: bool = True) -> Path:
    """A tokenizer of one token a character, the full stops in other forms, and <AC> last."""
    texts = [*stops, " ", "!", *"abcdefghijklmnopqrstuvwxyz"][: VOCABULARY - 1]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, []))
    if ac:
        tokenizer.add_special_tokens([AddedToken("<AC>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def in_chunks(decoder: Decoder, tokens: torch.Tensor, cuts: Sequence[int]) -> torch.Tensor:
    """Logits [B, L, V] of all tokens int64 [B, L], read in these cuts, in caches with room left."""
    state, rows = decoder.new_state(capacity=tokens.shape[1] + 3), []
    for part in torch.split(tokens, list(cuts), dim=1):
        logits, state = decoder(part, torch.arange(part.shape[1]), state)
        rows.append(logits)
    return torch.cat(rows, dim=1)


def write_config(folder: Path, data: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def refusal(path: Path, config: Path | None = None) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        open_checkpoint(path, config)
    return str(caught.value)


def stories() -> Path:
    """A small Llama that was trained."""
    path = Path(os.environ.get("LONGSPAN_DATA", "nowhere")) / "checkpoints/stories260K"
    if not path.is_dir():
        pytest.skip("LONGSPAN_DATA has no checkpoints/stories260K")
    return path
