"""Every system with a few thousand weights, and a text of a few thousand tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from systems import SYSTEMS, System, Tokens
from tasks import sentences_of_tasks
from text import Text, new_tokenizer, save_tokenizers

HEADS = {"n_head": 2, "n_query_groups": 1, "head_size": 16}
SIZES: dict[str, Any] = {
    "samba": {"n_embd": 32, "n_layer": 2, "intermediate_size": 32, "local_window": 16, **HEADS},
    "window": {"n_embd": 32, "n_layer": 2, "intermediate_size": 32, "local_window": 64, **HEADS},
    "mamba2": {
        "d_model": 32, "n_layer": 2, "d_intermediate": 128,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 16},
    },
    "mamba": {"d_model": 32, "n_layer": 2, "d_intermediate": 128},
    "mambabyte": {"d_model": 32, "n_layer": 2},
}  # fmt: skip
LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "intermediate_size": 32,
}  # fmt: skip
MIXCON = LLAMA | {
    "num_hidden_layers": 3, "moe_intermediate_size": 16,
    "conba": {"head_dim": 16, "d_state": 8, "gain": "off"},
}  # fmt: skip


def small(name: str) -> System:
    """A system with the same layers, less wide."""
    given = SYSTEMS[name]
    sizes = SIZES.get(name, MIXCON if name in ("mixcon", "conba") else LLAMA)
    return replace(given, config={**given.config, **sizes})


def write_text(folder: Path, tokens: Tokens) -> Text:
    """A tokenizer that knows the tasks' words, and 5,000 tokens of filler in each array."""
    text = Text(folder, tokens)
    save_tokenizers(new_tokenizer(iter(sentences_of_tasks() * 3)), folder)
    words = ["the", "sea", "was", "calm", "and", "grey", "as", "they", "sailed", "on", ".", "\n"]
    said = " ".join(np.random.default_rng(0).choice(words, 6000))
    ids = text.tokenizer().encode(said).tolist()[:5000]
    for array in ("train", "books", "modules"):
        text.save(array, ids, 5000)
    return text
