"""A model of full attention made into one that reads through anchors: the same weights, less kept.

small = with_anchors(config, anchor_every=128)
"""

from __future__ import annotations

from dataclasses import fields, replace

from longspan.models.config.attention import (
    AnchorAttentionConfig,
    FullAttentionConfig,
    HeadsConfig,
    Positions,
)
from longspan.models.config.model import ModelConfig


def with_anchors(
    config: ModelConfig,
    *,
    anchor_ids: tuple[int, ...] = (),
    anchor_every: int | None = None,
    positions: Positions = "absolute",
) -> ModelConfig:
    """The config with `AnchorAttentionConfig` in place of every layer of full attention.

    None of those may have a convolution (`d_conv`), which anchor attention does not have.
    """
    full = [layer for layer in config.layers if isinstance(layer, FullAttentionConfig)]
    assert all(layer.d_conv is None for layer in full), "a convolution would be lost"
    shared = [field.name for field in fields(HeadsConfig)]
    layers = tuple(
        AnchorAttentionConfig(
            **{name: getattr(layer, name) for name in shared},
            anchor_ids=anchor_ids,
            anchor_every=anchor_every,
            positions=positions,
        )
        if isinstance(layer, FullAttentionConfig)
        else layer
        for layer in config.layers
    )
    return replace(config, layers=layers)
