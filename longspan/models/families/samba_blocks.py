"""Which block of lit_gpt's model mixes with what, and the sizes of each mixer.

What lit_gpt leaves to its code is read from the shapes: state size, convolution width and rank of
dt of a Mamba; heads and rank of the gate of gated linear attention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from longspan.models.config import (
    FullAttentionConfig,
    GlaConfig,
    LayerConfig,
    MambaConfig,
    MlpConfig,
    WindowAttentionConfig,
)
from longspan.models.tensor_files import TensorFiles

# lit_gpt's retention rotates by flash-linear-attention's default, whatever its own config says.
RETENTION_ROPE_BASE = 10000.0
# lit_gpt: gated linear attention has n_embd // 384 heads.
GLA_HEAD_WIDTH = 384

MixerName = Literal["mamba", "mlp", "retention", "gla", "attention"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """One residual layer of a block: its norm's and its module's name there, and its sizes."""

    norm: str
    module: str
    config: LayerConfig


Block = tuple[Mixer, ...]


def blocks(values: Mapping[str, Any], files: TensorFiles) -> list[Block]:
    """The residual layers of each block."""
    return [_block(i, values, files) for i in range(values["n_layer"])]


def _mixer_name(i: int, values: Mapping[str, Any]) -> MixerName:
    """What block `i` of a model of mixers and MLPs mixes with; the first rule that fits counts."""
    if values["attn_layer_pos"] is not None:
        kind: MixerName = "attention" if i in _positions(values["attn_layer_pos"]) else "mamba"
    elif _every(i, values["mb_per_layer"]):
        kind = "mamba"
    elif _every(i, values["ret_per_layer"]):
        kind = "retention"
    elif _every(i, values["gla_per_layer"]):
        kind = "gla"
    else:
        kind = "attention"
    return "mlp" if kind == "mamba" and values["abl_mamba"] else kind


def _every(i: int, period: int) -> bool:
    return period > 0 and i % period == 0


def _positions(value: Any) -> list[int]:
    """lit_gpt writes the list of attention blocks as Python text, such as ``"[1,5]"``."""
    return [int(digits) for digits in re.findall(r"\d+", str(value))]


def _block(i: int, values: Mapping[str, Any], files: TensorFiles) -> Block:
    at = f"transformer.h.{i}."
    if values["mamba"]:
        mamba = _mamba(f"{at}mixer.", values, files)
        return (Mixer(norm="norm", module="mixer", config=mamba),)
    mlp = Mixer(norm="norm_2", module="mlp", config=MlpConfig(d_ff=values["intermediate_size"]))
    if values["mamba_swa_mlp"]:
        return (
            Mixer(norm="norm_m", module="mb", config=_mamba(f"{at}mb.", values, files)),
            Mixer(norm="norm_attn", module="attn", config=_attention(i, values)),
            mlp,
        )
    # Whatever it is, lit_gpt calls it attn.
    config: LayerConfig
    match _mixer_name(i, values):
        case "mamba":
            config = _mamba(f"{at}attn.", values, files)
        case "mlp":
            config = MlpConfig(d_ff=2 * values["n_embd"])
        case "retention":
            config = _retention(values)
        case "gla":
            config = _gla(f"{at}attn.", values, files)
        case "attention":
            config = _attention(i, values)
    return Mixer(norm="norm_1", module="attn", config=config), mlp


def _size(files: TensorFiles, name: str, axis: int, usual: int) -> int:
    """One length of a tensor's shape."""
    # A missing tensor, or one of another rank, is reported when all names are checked.
    shape = files.shape(name) if name in files.names else ()
    return shape[axis] if len(shape) > axis else usual


def _mamba(prefix: str, values: Mapping[str, Any], files: TensorFiles) -> MambaConfig:
    width = values["n_embd"]
    return MambaConfig(
        d_inner=_size(files, f"{prefix}A_log", 0, 2 * width),
        d_state=_size(files, f"{prefix}A_log", 1, 16),
        d_conv=_size(files, f"{prefix}conv1d.weight", 2, 4),
        dt_rank=_size(files, f"{prefix}dt_proj.weight", 1, -(-width // 16)),
    )


def _gla(prefix: str, values: Mapping[str, Any], files: TensorFiles) -> GlaConfig:
    width = values["n_embd"]
    usual = width // max(1, width // GLA_HEAD_WIDTH)
    value_dim = max(1, _size(files, f"{prefix}g_norm_swish_gate.weight", 0, usual))
    heads = max(1, _size(files, f"{prefix}v_proj.weight", 0, width) // value_dim)
    return GlaConfig(
        n_heads=heads,
        key_dim=_size(files, f"{prefix}q_proj.weight", 0, width // 2) // heads,
        value_dim=value_dim,
        gate_rank=_size(files, f"{prefix}gk_proj.0.weight", 0, 16),
    )


def _retention(values: Mapping[str, Any]) -> GlaConfig:
    heads = retention_heads(values)
    return GlaConfig(
        n_heads=heads,
        key_dim=values["n_embd"] // heads,
        value_dim=2 * values["n_embd"] // heads,
        gate_rank=None,
        rope_base=RETENTION_ROPE_BASE,
    )


def retains(values: Mapping[str, Any]) -> bool:
    """Whether a block of a model of mixers and MLPs mixes with retention."""
    return not values["mamba_swa_mlp"] and any(
        _mixer_name(i, values) == "retention" for i in range(values["n_layer"])
    )


def retention_heads(values: Mapping[str, Any]) -> int:
    """Heads of retention: half as many as attention has."""
    return int(values["n_head"]) // 2


def _attention(i: int, values: Mapping[str, Any]) -> FullAttentionConfig | WindowAttentionConfig:
    """Attention over a window; over all tokens without one, and in every `full_per_layer`-th."""
    sizes = {
        "n_heads": values["n_head"],
        "n_kv_heads": values["n_query_groups"],
        "head_dim": values["head_size"],
        "rope_base": None if values["nope"] else float(values["rope_base"]),
    }
    window, period = values["local_window"], values["full_per_layer"]
    if window <= 0 or i % period == period - 1:
        return FullAttentionConfig(**sizes)
    return WindowAttentionConfig(**sizes, window=window)
