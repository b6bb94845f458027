"""Which module computes which kind of layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from longspan.models.anchor_attention import AnchorAttention
from longspan.models.conba import Conba
from longspan.models.config import (
    AnchorAttentionConfig,
    ConbaConfig,
    FullAttentionConfig,
    GlaConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    MoeConfig,
    WindowAttentionConfig,
)
from longspan.models.full_attention import FullAttention
from longspan.models.gla import GatedLinearAttention
from longspan.models.mamba import Mamba
from longspan.models.mamba2 import Mamba2
from longspan.models.moe import Moe
from longspan.models.swiglu import SwiGlu
from longspan.models.window_attention import WindowAttention

# Each module takes (config, d_model, dtype=...), and (x [B, L, D], state) -> (y, state). One whose
# class says `reads_tokens = True` takes (x, state, tokens int64 [B, L]).
MIXERS: Mapping[type[LayerConfig], Any] = {
    MambaConfig: Mamba,
    Mamba2Config: Mamba2,
    ConbaConfig: Conba,
    GlaConfig: GatedLinearAttention,
    WindowAttentionConfig: WindowAttention,
    FullAttentionConfig: FullAttention,
    AnchorAttentionConfig: AnchorAttention,
    MlpConfig: SwiGlu,
    MoeConfig: Moe,
}


def make_mixer(config: LayerConfig, d_model: int, dtype: torch.dtype) -> nn.Module:
    """The mixer of a layer, with weights of `dtype` that are not set."""
    mixer: nn.Module = MIXERS[type(config)](config, d_model, dtype=dtype)
    return mixer
