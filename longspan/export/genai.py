"""`genai_config.json`: names of graph, tokens, logits and states for onnxruntime-genai.

Its schema has patterns for convolution and recurrent states (``past_conv_names``,
``past_recurrent_names``; its class RecurrentState), none for a window's keys with a position of
their own, and it refuses unknown keys. So a model with attention gets no such file.
"""

from __future__ import annotations

from typing import Any

from longspan.bundle import GRAPHS
from longspan.models.config import Mamba2Config, MambaConfig, ModelConfig

# onnxruntime-genai wants a bound on a generation's length; a Mamba's memory has none.
CONTEXT_LENGTH = 2**20


def genai_config(config: ModelConfig, *, eos: int | None) -> dict[str, Any] | None:
    """The file's content for a model of Mamba or Mamba-2 layers alone; None for any other.

    Args:
        config: the layers.
        eos: id of the token that ends a text.
    """
    if not all(isinstance(layer, MambaConfig | Mamba2Config) for layer in config.layers):
        return None
    ends = {} if eos is None else {"eos_token_id": eos, "pad_token_id": eos}
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.vocab_size,
            "context_length": CONTEXT_LENGTH,
            **ends,
            "decoder": {
                "filename": GRAPHS["cuda"],
                "hidden_size": config.d_model,
                "num_hidden_layers": len(config.layers),
                "inputs": {
                    "input_ids": "tokens",
                    "past_conv_names": "past.layers.%d.conv",
                    "past_recurrent_names": "past.layers.%d.ssm",
                },
                "outputs": {
                    "logits": "logits",
                    "present_conv_names": "present.layers.%d.conv",
                    "present_recurrent_names": "present.layers.%d.ssm",
                },
            },
        },
        "search": {"max_length": CONTEXT_LENGTH, "past_present_share_buffer": False},
    }
