"""What a model is made of: one dataclass a layer kind, and the list of layers. No torch here.

A layer is one residual block, ``x + mixer(norm(x))``: a Samba unit is four of them. Each layer
config tells the tensors it carries from token to token (`state`).
"""

from longspan.models.config.anchors import with_anchors
from longspan.models.config.attention import (
    AnchorAttentionConfig,
    FullAttentionConfig,
    HeadsConfig,
    Positions,
    WindowAttentionConfig,
)
from longspan.models.config.cache_use import CacheUse
from longspan.models.config.conba import ConbaConfig
from longspan.models.config.gla import GlaConfig
from longspan.models.config.mamba import Mamba2Config, MambaConfig
from longspan.models.config.mlp import MlpConfig, MoeConfig
from longspan.models.config.model import LAYER_KINDS, LayerConfig, ModelConfig, Norm
from longspan.models.config.quantization import BITS, BLOCKS, Quantization

__all__ = [
    "BITS",
    "BLOCKS",
    "LAYER_KINDS",
    "AnchorAttentionConfig",
    "CacheUse",
    "ConbaConfig",
    "FullAttentionConfig",
    "GlaConfig",
    "HeadsConfig",
    "LayerConfig",
    "Mamba2Config",
    "MambaConfig",
    "MlpConfig",
    "ModelConfig",
    "MoeConfig",
    "Norm",
    "Positions",
    "Quantization",
    "WindowAttentionConfig",
    "with_anchors",
]
