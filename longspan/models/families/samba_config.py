"""lit_gpt's Config for Samba: which block mixes with what, and the four published sizes.

What lit_gpt leaves to its code (state size, convolution width, rank of dt) is read from the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longspan.errors import BadCheckpoint
from longspan.models.config import LayerConfig, MambaConfig, MlpConfig, WindowAttentionConfig
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
    "attn_layer_pos": Field(object, None),
    "mamba": Field(bool, False),
    "mamba_swa_mlp": Field(bool, False),
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
    "abl_mamba": Field(bool, False, only=(False,)),
    "ret_per_layer": Field(int, -1, only=(-1,)),
    "gla_per_layer": Field(int, -1, only=(-1,)),
    "full_per_layer": Field(int, 1000000, only=(1000000,)),
    "_norm_class": Field(str, "RMSNorm", only=("RMSNorm", "FusedRMSNorm")),
    "_mlp_class": Field(str, "LLaMAMLP", only=("LLaMAMLP",)),
    **ignored(
        "name", "org", "block_size", "residual_in_fp32", "fused_add_norm", "compress",
        "bos_token_id", "pad_token_id",
    ),
}  # fmt: skip

_COMMON = {"local_window": 2048, "mb_per_layer": 2, "rotary_percentage": 1.0, "tied": True}
# arXiv 2406.07522v1, table 10; n_layer counts blocks, half of the paper's N.
PUBLISHED = {
    "Samba_421M": (12, 1536, 4096, 12, 12, 32000),
    "Samba_1.3B": (18, 2304, 6144, 18, 18, 32000),
    "Samba_1.7B": (24, 2048, 8196, 32, 4, 50304),
    "Samba_3.8B": (32, 2816, 9984, 11, 1, 32064),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """One residual layer of a block: its norm's and its module's name there, and its sizes."""

    norm: str
    module: str
    config: LayerConfig


Block = tuple[Mixer, ...]


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
    values = read_fields(given or _recognise(files), FIELDS, where=where, family=NAME)
    if values["padded_vocab_size"] is None:
        _require(values, where, "vocab_size")
        multiple = values["padding_multiple"]
        values["padded_vocab_size"] = -(-values["vocab_size"] // multiple) * multiple
    if not values["mamba"]:
        _require(values, where, "n_head", "intermediate_size")
        _check_attention(values, where)
        values["n_query_groups"] = values["n_query_groups"] or values["n_head"]
        values["head_size"] = values["head_size"] or values["n_embd"] // values["n_head"]
    return values


def blocks(values: Mapping[str, Any], files: TensorFiles) -> list[Block]:
    """The residual layers of each block."""
    return [_block(i, values, files) for i in range(values["n_layer"])]


def tied_head(values: Mapping[str, Any], files: TensorFiles) -> bool:
    """Whether the head is the embedding: lit_gpt ties where it starts weights as Mamba does."""
    if values["tied"] is not None:
        return bool(values["tied"])
    starts_as_mamba = bool(values["mamba"]) or bool(values["mamba_init"])
    return starts_as_mamba or "lm_head.weight" not in files.names


def _block(i: int, values: Mapping[str, Any], files: TensorFiles) -> Block:
    if values["mamba"]:
        return (_mamba("norm", "mixer", i, values, files),)
    mlp = Mixer(norm="norm_2", module="mlp", config=MlpConfig(d_ff=values["intermediate_size"]))
    if values["mamba_swa_mlp"]:
        return (
            _mamba("norm_m", "mb", i, values, files),
            Mixer(norm="norm_attn", module="attn", config=_attention(values)),
            mlp,
        )
    if _uses_mamba(i, values):
        return _mamba("norm_1", "attn", i, values, files), mlp
    return Mixer(norm="norm_1", module="attn", config=_attention(values)), mlp


def _uses_mamba(i: int, values: Mapping[str, Any]) -> bool:
    if values["attn_layer_pos"] is not None:
        return i not in _positions(values["attn_layer_pos"])
    every = values["mb_per_layer"]
    return bool(every > 0 and i % every == 0)


def _positions(value: Any) -> list[int]:
    """lit_gpt writes the list of attention blocks as Python text, such as ``"[1,5]"``."""
    return [int(digits) for digits in re.findall(r"\d+", str(value))]


def _mamba(norm: str, module: str, i: int, values: Mapping[str, Any], files: TensorFiles) -> Mixer:
    prefix = f"transformer.h.{i}.{module}."

    def size(name: str, axis: int, usual: int) -> int:
        # A missing tensor, or one of another rank, is reported when all names are checked.
        shape = files.shape(prefix + name) if prefix + name in files.names else ()
        return shape[axis] if len(shape) > axis else usual

    width = values["n_embd"]
    config = MambaConfig(
        d_inner=size("A_log", 0, 2 * width),
        d_state=size("A_log", 1, 16),
        d_conv=size("conv1d.weight", 2, 4),
        dt_rank=size("dt_proj.weight", 1, -(-width // 16)),
    )
    return Mixer(norm=norm, module=module, config=config)


def _attention(values: Mapping[str, Any]) -> WindowAttentionConfig:
    return WindowAttentionConfig(
        n_heads=values["n_head"],
        n_kv_heads=values["n_query_groups"],
        head_dim=values["head_size"],
        window=values["local_window"],
        rope_base=None if values["nope"] else float(values["rope_base"]),
    )


def _require(values: Mapping[str, Any], where: str, *keys: str) -> None:
    for key in keys:
        if values[key] is None:
            raise BadCheckpoint(
                f"{where} lacks the key {key!r}. A {NAME} config must have it. Add it."
            )


def _check_attention(values: Mapping[str, Any], where: str) -> None:
    if values["local_window"] <= 0:
        raise BadCheckpoint(
            f"{where} has local_window = {values['local_window']}, attention over the whole text; "
            f"longspan supports a {NAME} model with a window above zero, whose memory is fixed. "
            "This checkpoint cannot be exported by this version."
        )
    heads, groups = values["n_head"], values["n_query_groups"] or values["n_head"]
    if heads % groups or (values["head_size"] is None and values["n_embd"] % heads):
        raise BadCheckpoint(
            f"{where} has n_embd = {values['n_embd']}, n_head = {heads}, n_query_groups = "
            f"{groups}; n_head must be a multiple of n_query_groups, and n_embd of n_head unless "
            "head_size is given. Correct them."
        )


def _recognise(files: TensorFiles) -> dict[str, Any]:
    for name, (n_layer, width, d_ff, heads, groups, vocabulary) in PUBLISHED.items():
        expected = {
            "transformer.wte.weight": (vocabulary, width),
            "transformer.h.0.mlp.swiglu.w1.weight": (d_ff, width),
            "transformer.h.1.attn.attn.weight": ((heads + 2 * groups) * (width // heads), width),
            f"transformer.h.{n_layer - 1}.norm_1.weight": (width,),
        }
        beyond = f"transformer.h.{n_layer}.norm_1.weight"
        fits = all(n in files.names and files.shape(n) == s for n, s in expected.items())
        if fits and beyond not in files.names:
            keys = ("n_layer", "n_embd", "intermediate_size", "n_head", "n_query_groups")
            sizes = dict(zip(keys, (n_layer, width, d_ff, heads, groups), strict=True))
            return {"name": name, "padded_vocab_size": vocabulary, **sizes, **_COMMON}
    raise BadCheckpoint(
        f"{files.path} was asked for as a {NAME} checkpoint, has no config.json beside it, and its "
        f"shapes are none of the published sizes ({', '.join(PUBLISHED)}). Heads and window cannot "
        "be read from shapes. Put lit_gpt's Config beside it as config.json, or give "
        "config=FILE (--config)."
    )
