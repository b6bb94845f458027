"""The tensors of Mamba-1 and Mamba-2 mixers: all checkpoint families name them the same."""

from __future__ import annotations

import torch

from longspan.models.checkpoint import Weight, copied
from longspan.models.config import Mamba2Config, MambaConfig


def negative_exp(a_log: torch.Tensor) -> torch.Tensor:
    """A = -exp(A_log), in float32."""
    return -torch.exp(a_log.float())


def mamba_weights(ours: str, theirs: str, config: MambaConfig, d_model: int) -> tuple[Weight, ...]:
    """How each parameter of a Mamba mixer is made.

    Args:
        ours: prefix of the decoder's names, such as ``"layers.0.mixer."``.
        theirs: prefix of the checkpoint's names.
        config: sizes of the mixer.
        d_model: width of the model, D.
    """
    inner, states, rank = config.d_inner, config.d_state, config.dt_rank
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "in_proj.weight": ("in_proj.weight", (2 * inner, d_model)),
        "conv_weight": ("conv1d.weight", (inner, 1, config.d_conv)),
        "x_proj.weight": ("x_proj.weight", (rank + 2 * states, inner)),
        "dt_proj.weight": ("dt_proj.weight", (inner, rank)),
        "dt_bias": ("dt_proj.bias", (inner,)),
        "D": ("D", (inner,)),
        "out_proj.weight": ("out_proj.weight", (d_model, inner)),
    }
    if config.conv_bias:
        shapes["conv_bias"] = ("conv1d.bias", (inner,))
    if config.proj_bias:
        shapes["in_proj.bias"] = ("in_proj.bias", (2 * inner,))
        shapes["out_proj.bias"] = ("out_proj.bias", (d_model,))
    log = Weight(name=f"{ours}A", sources={f"{theirs}A_log": (inner, states)}, make=negative_exp)
    return log, *(
        copied(ours + name, theirs + source, *shape) for name, (source, shape) in shapes.items()
    )


def mamba2_weights(
    ours: str, theirs: str, config: Mamba2Config, d_model: int
) -> tuple[Weight, ...]:
    """How each parameter of a Mamba-2 mixer is made; arguments as for `mamba_weights`."""
    heads, inner, channels = config.n_heads, config.d_inner, config.conv_channels
    rows = inner + channels + heads
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "in_proj.weight": ("in_proj.weight", (rows, d_model)),
        "conv_weight": ("conv1d.weight", (channels, 1, config.d_conv)),
        "dt_bias": ("dt_bias", (heads,)),
        "out_proj.weight": ("out_proj.weight", (d_model, inner)),
    }
    if config.conv_bias:
        shapes["conv_bias"] = ("conv1d.bias", (channels,))
    if config.proj_bias:
        shapes["in_proj.bias"] = ("in_proj.bias", (rows,))
        shapes["out_proj.bias"] = ("out_proj.bias", (d_model,))
    if config.norm_eps is not None:
        shapes["norm.weight"] = ("norm.weight", (inner,))
    log = Weight(name=f"{ours}A", sources={f"{theirs}A_log": (heads,)}, make=negative_exp)
    skip = Weight(
        name=f"{ours}D",
        sources={f"{theirs}D": (inner if config.d_per_channel else heads,)},
        make=lambda flat: flat.view(heads, -1) if config.d_per_channel else flat,
    )
    copies = (
        copied(ours + name, theirs + source, *shape) for name, (source, shape) in shapes.items()
    )
    return log, skip, *copies
