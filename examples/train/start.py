"""A decoder as training begins: the random weights, and memory that fades late.

decoder = new_model(system.model, compute=torch.bfloat16, device="cuda")
"""

from __future__ import annotations

import math

import torch
from published import train_logarithms
from torch import nn

from longspan.models.config import ModelConfig
from longspan.models.decoder import Decoder

# Steps are drawn log-uniformly: some channels forget within ten tokens, some after ten thousand.
STEPS = (1e-4, 1e-1)
TO_RESIDUAL = ("out_proj.weight", "down_proj.weight")
ONES = ("norm.weight", "mixer.D")
ZEROS = ("bias", "w_tau")


def new_model(config: ModelConfig, *, compute: torch.dtype, device: str) -> Decoder:
    """A decoder of float32 weights that computes in `compute`, with A_log in place of A."""
    decoder = Decoder(config, compute=compute)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            initialise_(name, parameter, layers=len(config.layers))
    train_logarithms(decoder)
    return decoder.to(device)


def initialise_(name: str, parameter: nn.Parameter, *, layers: int) -> None:
    """Fill a parameter by its name and shape.

    Matrices have a standard deviation of fan_in^-0.5, less by the root of `layers` where they write
    to the residual.
    """
    if name.endswith("dt_bias"):
        low, high = map(math.log, STEPS)
        step = torch.exp(low + (high - low) * torch.rand_like(parameter))
        parameter.copy_(step + torch.log(-torch.expm1(-step)))
    elif name.endswith("mixer.A"):
        parameter.copy_(_decays(parameter))
    elif name.endswith(ONES):
        parameter.fill_(1.0)
    elif "conv_" in name:
        taps = parameter.shape[-1] if parameter.dim() == 3 else 4
        parameter.uniform_(-(taps**-0.5), taps**-0.5)
    elif name.endswith(ZEROS):
        parameter.zero_()
    else:
        std = parameter.shape[-1] ** -0.5
        parameter.normal_(std=std / math.sqrt(layers) if name.endswith(TO_RESIDUAL) else std)


def _decays(A: torch.Tensor) -> torch.Tensor:
    """-1 .. -N for each channel of Mamba [E, N]; -1 .. -16, drawn, for heads of Mamba-2 [H]."""
    if A.dim() == 1:
        return -1.0 - 15.0 * torch.rand_like(A)
    return -torch.arange(1.0, A.shape[1] + 1).expand_as(A)
