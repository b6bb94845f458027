"""Arguments of every op for a given number of tokens, drawn where they lie: no second copy.

Inputs are of the draw's dtype, parameters and states float32. A unit is a head, or a block of 64
channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from longspan.kernels.conba import ConbaState

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Draws random tensors on a device: inputs in `dtype`, parameters and states in float32."""

    device: str
    dtype: torch.dtype

    def inputs(self, *shape: int) -> torch.Tensor:
        """Activations."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def parameters(self, *shape: int) -> torch.Tensor:
        """Weights, or a state."""
        return torch.randn(shape, device=self.device)


def norm_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width = 64 * units
    return {"x": draw.inputs(1, tokens, width), "weight": draw.parameters(width), "eps": 1e-5}


def sum_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    """The sum takes the place of x: of zeros, so that it is y."""
    width = 64 * units
    y = draw.inputs(1, tokens, width)
    return {
        "x": torch.zeros_like(y),
        "y": y,
        "weight": draw.parameters(width),
        "kind": "rms",
        "eps": 1e-5,
    }


def gate_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width = 64 * units
    return {"gate": draw.inputs(1, tokens, width), "x": draw.inputs(1, tokens, width)}


def rope_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width = 64
    return {
        "q": draw.inputs(1, tokens, units, width),
        "k": draw.inputs(1, tokens, 1, width),
        "position": torch.tensor([100], device=draw.device),
        "base": 10_000.0,
    }


def conv_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width = 64 * units
    return {
        "x": draw.inputs(1, tokens, width),
        "weight": draw.parameters(width, 1, 4),
        "bias": draw.parameters(width),
        "activation": "silu",
    }


def scan_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width, states = 64 * units, 16
    return {
        "x": draw.inputs(1, tokens, width),
        "dt": draw.inputs(1, tokens, width),
        "A": -torch.arange(1.0, states + 1, device=draw.device).repeat(width, 1),
        "B": draw.inputs(1, tokens, states),
        "C": draw.inputs(1, tokens, states),
        "D": draw.parameters(width),
        "z": draw.inputs(1, tokens, width),
        "dt_bias": torch.linspace(-7, 0, width, device=draw.device),
        "state": draw.parameters(1, width, states),
    }


def ssd_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width, states = 64, 128
    return {
        "x": draw.inputs(1, tokens, units, width),
        "dt": draw.inputs(1, tokens, units),
        "A": -torch.linspace(1, 16, units, device=draw.device),
        "B": draw.inputs(1, tokens, 1, states),
        # y is a sum of N terms: scaled, it has the size that the tolerances are meant for.
        "C": draw.inputs(1, tokens, 1, states) / states**0.5,
        "D": draw.parameters(units),
        "dt_bias": torch.linspace(-7, 0, units, device=draw.device),
        "state": draw.parameters(1, units, states, width),
    }


def window_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width, window = 128, 9
    past = (1, window - 1, units, width)
    return {
        "q": draw.inputs(1, tokens, units, width),
        "k": draw.inputs(1, tokens, units, width),
        "v": draw.inputs(1, tokens, units, width),
        "past_k": draw.inputs(*past),
        "past_v": draw.inputs(*past),
        "position": torch.tensor([100], device=draw.device),
        "window": window,
    }


def full_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    """A long text at once: many heads over one key head, so that 2^31 numbers are few tokens.

    Queries are wide, so that few keys weigh much and y is no mean of thousands, which is near 0.
    """
    width = 128
    return {
        "q": draw.inputs(1, tokens, units, width).mul_(4),
        "k": draw.inputs(1, tokens, 1, width),
        "v": draw.inputs(1, tokens, 1, width),
        "past_k": draw.inputs(1, tokens, 1, width),
        "past_v": draw.inputs(1, tokens, 1, width),
        "position": torch.tensor([0], device=draw.device),
    }


def cache_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    """Four tokens after a long text, whose keys weigh nothing but for the last twelve.

    Scores of the others are near -90: what they add is less than a float32 holds, so the reference
    may leave them out, and a kernel that reads a wrong entry shows.
    """
    width, new = 128, 4
    q, k, v = (draw.inputs(1, new, units, width) for _ in range(3))
    past_k, past_v = (draw.inputs(1, tokens, units, width) for _ in range(2))
    q[..., 0] = 16.0
    past_k[:, : tokens - 16, :, 0] = -64.0
    position = torch.tensor([tokens - new], device=draw.device)
    return {"q": q, "k": k, "v": v, "past_k": past_k, "past_v": past_v, "position": position}


def conba_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    """With a gain, which is the walk of heads."""
    states, width = 64, 64
    return {
        "s": draw.inputs(1, tokens, units, states),
        "a": torch.rand(1, tokens, units, states, device=draw.device),
        "u": draw.inputs(1, tokens, units, width),
        "r": draw.inputs(1, tokens, units, width),
        "w_tau": draw.parameters(units, states),
        "C": draw.parameters(units, width, states) / states**0.5,
        "D": draw.parameters(units, width),
        "state": ConbaState(
            x=draw.parameters(1, units, states),
            delay=draw.parameters(1, 1, units, states),
            gain=draw.parameters(1, units, states, width) / 256,
            error=draw.parameters(1, units, width),
        ),
    }


def conba_arguments_without_gain(draw: Draw, tokens: int, units: int) -> Arguments:
    """Without a gain, which is the walk of channels in chunks."""
    arguments = conba_arguments(draw, tokens, units)
    state = arguments["state"]
    still = ConbaState(x=state.x, delay=state.delay)
    return {**arguments, "r": None, "state": still, "update_every": None}


def moe_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    """One expert of four a token, narrow inside."""
    width, d_ff, experts = 64 * units, 32, 4
    return {
        "x": draw.inputs(1, tokens, width),
        "logits": draw.parameters(1, tokens, experts),
        "gate_up": (draw.parameters(experts, 2 * d_ff, width) / width**0.5).to(draw.dtype),
        "down": (draw.parameters(experts, width, d_ff) / d_ff**0.5).to(draw.dtype),
        "top_k": 1,
    }
