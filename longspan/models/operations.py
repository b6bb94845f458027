"""Which ops a model calls, found by running it: one token through the smallest layer of each kind.

operations(checkpoint.config)   # ("add_norm", "causal_conv", "linear", "selective_scan")
"""

from __future__ import annotations

from dataclasses import replace

import torch

from longspan.kernels import recorded
from longspan.models.config import ModelConfig
from longspan.models.decoder import Decoder


@torch.inference_mode()
def operations(config: ModelConfig) -> tuple[str, ...]:
    """Names of the ops that a model with these kinds of layers calls, sorted."""
    kinds = {type(layer): None for layer in config.layers}
    small = replace(config, vocab_size=2, d_model=4, layers=tuple(kind.tiny() for kind in kinds))
    decoder = Decoder(small)
    for parameter in decoder.parameters():
        parameter.zero_()
    with recorded() as names:
        decoder(torch.zeros(1, 1, dtype=torch.int64), None, decoder.new_state(capacity=1))
    return tuple(sorted(names))
