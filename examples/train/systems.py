"""The systems that are trained: each a published format's own config, read as longspan reads it.

A system has no model of its own: its config gives longspan's `ModelConfig`, and the family's rules
say what the checkpoint calls each parameter. All have about 3.6M parameters, so that one file of
float32 weights stays below 15 MiB; where there is a window it is shorter than what is to be
remembered.

    system = SYSTEMS["samba"]
    decoder = Decoder(system.model)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from longspan.models.checkpoint import Weight
from longspan.models.config import ModelConfig
from longspan.models.families import llama, mamba, mamba2, mambabyte, mixcon, samba
from longspan.models.families.backbone import BACKBONE
from longspan.models.families.backbone import weights as backbone_weights
from longspan.models.families.mixcon_config import model_config as mixcon_model
from longspan.models.families.samba_blocks import blocks
from longspan.models.families.samba_config import config_values
from longspan.models.tensor_files import TensorFiles

Config = Mapping[str, Any]
# What a token is: a piece of a word, the same with a token after each sentence, or a byte.
Tokens = Literal["words", "sentences", "bytes"]
Layout = tuple[ModelConfig, tuple[Weight, ...]]

WORDS = 4096
SENTENCES = WORDS + 1
BYTES = 256


@dataclass(frozen=True, kw_only=True)
class System:
    """What is trained.

    Attributes:
        name: on the command line.
        config: as `config.json` holds it.
        read: the layers that a config describes, and how each parameter is made.
        file: what the format calls its weights.
        tokens: what the model reads.
        export: options of `longspan export` that the checkpoint needs.
    """

    name: str
    config: Config
    read: Callable[[Config], Layout]
    file: str = "model.safetensors"
    tokens: Tokens = "words"
    export: tuple[str, ...] = ()

    @cached_property
    def layout(self) -> Layout:
        """The model, and how each of its parameters is made from the checkpoint's tensors."""
        return self.read(self.config)

    @property
    def model(self) -> ModelConfig:
        """The layers."""
        return self.layout[0]

    @property
    def anchor(self) -> int | None:
        """Id of the token that stands for a sentence once it is closed; None for none."""
        return SENTENCES - 1 if self.tokens == "sentences" else None


class NoFiles(TensorFiles):
    """No tensors at all: what lit_gpt reads from shapes is then as it is by default."""

    path = Path("config.json")

    @property
    def names(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def shape(self, name: str) -> tuple[int, ...]:
        """Never asked for."""
        raise KeyError(name)

    def dtype(self, name: str) -> torch.dtype | None:
        """Never asked for."""
        raise KeyError(name)

    def read(self, name: str) -> torch.Tensor:
        """Never asked for."""
        raise KeyError(name)


def _lit_gpt(config: Config) -> Layout:
    values = config_values(config, "config.json", NoFiles())
    model = samba.model_config(values, NoFiles())
    return model, tuple(samba.weights(model, blocks(values, NoFiles())))


def _backbone(model_config: Callable[[Config, str], ModelConfig]) -> Callable[[Config], Layout]:
    def read(config: Config) -> Layout:
        model = model_config(config, "config.json")
        return model, tuple(backbone_weights(model, BACKBONE[0]))

    return read


def _named(
    model_config: Callable[[Config, str], ModelConfig],
    weights: Callable[[ModelConfig], Iterable[Weight]],
) -> Callable[[Config], Layout]:
    def read(config: Config) -> Layout:
        model = model_config(config, "config.json")
        return model, tuple(weights(model))

    return read


LIT_GPT: Config = {
    "n_embd": 192,
    "n_head": 6,
    "n_query_groups": 2,
    "head_size": 32,
    "intermediate_size": 512,
    "local_window": 32,
    "vocab_size": WORDS,
    "padded_vocab_size": WORDS,
    "norm_eps": 1e-5,
    "rope_base": 10_000,
    "_norm_class": "RMSNorm",
    "_mlp_class": "LLaMAMLP",
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
    "tied": True,
}
MAMBA_SSM: Config = {
    "d_model": 192,
    "n_layer": 5,
    "d_intermediate": 512,
    "vocab_size": WORDS,
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}
LLAMA: Config = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": WORDS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
MIXCON: Config = {
    "model_type": "mixcon",
    "vocab_size": WORDS,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "intermediate_size": 512,
    "attn_layer_period": 3,
    "attn_layer_offset": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "conba": {"head_dim": 32, "d_state": 32, "gain": "off"},
    "tie_word_embeddings": True,
}

SYSTEMS: Mapping[str, System] = MappingProxyType(
    {
        system.name: system
        for system in (
            System(
                name="samba",
                config={**LIT_GPT, "name": "Samba_recall", "n_layer": 6, "mb_per_layer": 2},
                read=_lit_gpt,
                file="samba.pth",
            ),
            System(
                name="window",
                config={**LIT_GPT, "name": "SWA_recall", "n_layer": 7, "mb_per_layer": -1},
                read=_lit_gpt,
                file="window.pth",
            ),
            System(
                name="mamba2",
                config={
                    **MAMBA_SSM,
                    "ssm_cfg": {"layer": "Mamba2", "d_state": 128, "headdim": 64},
                },
                read=_backbone(mamba2.model_config),
            ),
            System(
                name="mamba",
                config={**MAMBA_SSM, "ssm_cfg": {"layer": "Mamba1"}},
                read=_backbone(mamba.model_config),
            ),
            System(
                name="mambabyte",
                config={
                    **MAMBA_SSM,
                    "d_model": 256,
                    "n_layer": 8,
                    "d_intermediate": 0,
                    "vocab_size": BYTES,
                    "ssm_cfg": {},
                },
                read=_backbone(mambabyte.model_config),
                tokens="bytes",
            ),
            System(name="llama", config=LLAMA, read=_named(llama.model_config, llama.weights)),
            System(
                name="anllm",
                config={**LLAMA, "vocab_size": SENTENCES},
                read=_named(llama.model_config, llama.weights),
                tokens="sentences",
                export=("--anchors", "ac"),
            ),
            System(name="mixcon", config=MIXCON, read=_named(mixcon_model, mixcon.weights)),
            System(
                name="conba",
                config={
                    **MIXCON,
                    "attn_layer_period": 7,
                    "attn_layer_offset": 6,
                    "moe_intermediate_size": 112,
                },
                read=_named(mixcon_model, mixcon.weights),
            ),
        )
    }
)
