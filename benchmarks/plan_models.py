"""A small model of every family, with random weights, as a bundle that every engine runs.

with exported_model("samba", 512, "float32") as path: ...
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from model_runs import apart
from random_bundle import random_bundle

from longspan.export.weight_options import QUANTIZED_BITS
from longspan.models.config import (
    ConbaConfig,
    FullAttentionConfig,
    GlaConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    WindowAttentionConfig,
    with_anchors,
)

VOCABULARY = 8192
HEAD = 64
# Whose head is not the embedding, as in published ones.
UNTIED = ("llama", "anchors", "mixcon")


def _mamba(width: int) -> MambaConfig:
    return MambaConfig(d_inner=2 * width, d_state=16, d_conv=4, dt_rank=-(-width // 16))


def _mamba2(width: int) -> Mamba2Config:
    return Mamba2Config(n_heads=2 * width // HEAD, head_dim=HEAD, n_groups=1, d_state=128, d_conv=4)


def _mlp(width: int) -> MlpConfig:
    return MlpConfig(d_ff=-(-8 * width // 3 // HEAD) * HEAD)


def _window(width: int) -> WindowAttentionConfig:
    return WindowAttentionConfig(
        n_heads=width // HEAD, n_kv_heads=_groups(width), head_dim=HEAD, window=2048
    )


def _full(width: int) -> FullAttentionConfig:
    return FullAttentionConfig(n_heads=width // HEAD, n_kv_heads=_groups(width), head_dim=HEAD)


def _groups(width: int) -> int:
    return max(1, width // HEAD // 4)


def _gla(width: int) -> GlaConfig:
    heads = width // 256
    return GlaConfig(n_heads=heads, key_dim=width // heads // 2, value_dim=width // heads)


def _retention(width: int) -> GlaConfig:
    heads = width // 256
    return GlaConfig(
        n_heads=heads, key_dim=width // heads, value_dim=2 * width // heads,
        gate_rank=None, rope_base=10000.0,
    )  # fmt: skip


def _conba(width: int) -> ConbaConfig:
    return ConbaConfig(n_heads=width // HEAD, head_dim=HEAD, d_state=HEAD, d_select=width // 4)


def _conba_without_gain(width: int) -> ConbaConfig:
    return replace(_conba(width), gain="off")


def _mixcon(width: int) -> tuple[LayerConfig, ...]:
    moe = MoeConfig(n_experts=8, top_k=2, d_ff=width)
    return (_conba(width), _mlp(width), _conba(width), moe, _full(width), _mlp(width),
            _conba(width), moe)  # fmt: skip


def _hybrid(mixer: Callable[[int], LayerConfig], width: int) -> tuple[LayerConfig, ...]:
    return (mixer(width), _mlp(width), _window(width), _mlp(width))


# The layers of a unit of each model, by width, and how many units it has.
MODELS: Mapping[str, tuple[int, Callable[[int], tuple[LayerConfig, ...]]]] = {
    "mamba": (8, lambda width: (_mamba(width),)),
    "mambabyte": (8, lambda width: (_mamba(width),)),
    "mamba2": (8, lambda width: (_mamba2(width),)),
    "samba": (3, lambda width: _hybrid(_mamba, width)),
    "gla": (3, lambda width: _hybrid(_gla, width)),
    "retnet": (3, lambda width: _hybrid(_retention, width)),
    "llama": (4, lambda width: (_full(width), _mlp(width))),
    "anchors": (4, lambda width: (_full(width), _mlp(width))),
    "mixcon": (1, _mixcon),
    "conba": (4, lambda width: (_conba_without_gain(width), _mlp(width))),
}


def model_config(name: str, width: int, times: int = 1) -> ModelConfig:
    """The layers of one of `MODELS`.

    Args:
        name: of the model.
        width: of a token's vector, a multiple of 256.
        times: how often the layers follow one another.
    """
    units, unit = MODELS[name]
    vocabulary = 256 if name == "mambabyte" else VOCABULARY
    config = ModelConfig(
        family=name,
        vocab_size=vocabulary,
        d_model=width,
        layers=unit(width) * units * times,
        tied=name not in UNTIED,
    )
    return with_anchors(config, anchor_every=128) if name == "anchors" else config


@contextmanager
def exported_model(
    name: str, width: int, weights: str, *, graphs: bool, times: int = 1
) -> Iterator[Path]:
    """A temporary bundle of one of `MODELS`.

    Args:
        name: of the model.
        width: of a token's vector.
        weights: a dtype, ``"int8"`` or ``"int4"``.
        graphs: whether ONNX Runtime is to run it: then it is exported, which checks it, too.
        times: how often the layers follow one another.
    """
    config = model_config(name, width, times)
    if not graphs:
        with random_bundle(name, weights, config=config) as path:
            yield path
        return
    plain = "bfloat16" if weights in QUANTIZED_BITS else weights
    with random_bundle(name, plain, config=config) as path, tempfile.TemporaryDirectory() as kept:
        bundle = Path(kept) / name
        apart(_export, path, bundle, weights)
        yield bundle


def _export(checkpoint: Path, bundle: Path, weights: str) -> None:
    """In a process of its own: what exporting holds is none of a budget."""
    from longspan.export import export_bundle

    export_bundle(checkpoint, bundle, weights=weights)
