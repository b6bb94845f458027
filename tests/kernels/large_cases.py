"""How each op is called beyond 2^31 elements, and how the end of that call is read alone.

An op is a row of `CASES`. 2^31 elements of bfloat16 are 4 GiB, and each case tells its peak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from longspan.kernels import override
from longspan.kernels.add_norm import add_norm
from longspan.kernels.attention import window_attention
from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.conba import conba
from longspan.kernels.full_attention import full_attention
from longspan.kernels.moe import moe
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.rope import rope
from longspan.kernels.selective_scan import selective_scan
from longspan.kernels.ssd import ssd
from longspan.kernels.swiglu import swiglu
from tests.kernels.large_arguments import (
    Arguments,
    Draw,
    cache_arguments,
    conba_arguments,
    conba_arguments_without_gain,
    conv_arguments,
    full_arguments,
    gate_arguments,
    moe_arguments,
    norm_arguments,
    rope_arguments,
    scan_arguments,
    ssd_arguments,
    sum_arguments,
    window_arguments,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How an op is called far beyond 2^31 elements.

    Attributes:
        name: of the op, and of the call where it has several.
        op: the public function.
        units: heads, or blocks of channels, of the large case; the small case has one.
        arguments: all arguments for so many tokens and units.
        large: the argument that passes 2^31 elements first; its axis 1 counts tokens.
        end: the arguments that read the tokens from one on, from the state before it.
        state_row: row of the tolerances for the state after the last token; None without one.
        end_tokens: tokens that are compared, on either side of the border.
    """

    name: str
    op: Callable[..., Any]
    units: int
    arguments: Callable[[Draw, int, int], Arguments]
    large: str
    end: Callable[[Arguments, int], Arguments]
    state_row: str | None = None
    end_tokens: int = 128


def part(arguments: Arguments, names: tuple[str, ...], tokens: slice) -> Arguments:
    """The arguments with some of the tokens of those named, whose axis 1 counts tokens."""
    return {**arguments, **{name: arguments[name][:, tokens] for name in names}}


def after_nothing(arguments: Arguments, first: int) -> Arguments:
    """No state: each token is by itself."""
    return part(arguments, ("x",), slice(first, None))


def after_nothing_summed(arguments: Arguments, first: int) -> Arguments:
    """No state; x, which was zero, holds the sum."""
    y = arguments["y"][:, first:]
    return {**arguments, "x": torch.zeros_like(y), "y": y}


def after_nothing_gated(arguments: Arguments, first: int) -> Arguments:
    """No state: each token, and its gate, is by itself."""
    return part(arguments, ("gate", "x"), slice(first, None))


def after_positions(arguments: Arguments, first: int) -> Arguments:
    """Queries and keys that stand so much later."""
    rest = part(arguments, ("q", "k"), slice(first, None))
    return {**rest, "position": arguments["position"] + first}


def after_nothing_routed(arguments: Arguments, first: int) -> Arguments:
    """No state: each token, and where it goes, is by itself."""
    return part(arguments, ("x", "logits"), slice(first, None))


def after_inputs(arguments: Arguments, first: int) -> Arguments:
    """The convolution's tail: its last inputs."""
    taps = arguments["weight"].shape[2]
    tail = arguments["x"][:, first - taps + 1 : first]
    return {**part(arguments, ("x",), slice(first, None)), "tail": tail}


def after_reading(op: Callable[..., Any], *names: str) -> Callable[[Arguments, int], Arguments]:
    """The state that the kernel leaves after the tokens before, which stay below the border."""

    def end(arguments: Arguments, first: int) -> Arguments:
        with override(op.__name__, "triton"):
            _, state = op(**part(arguments, names, slice(first)))
        return {**part(arguments, names, slice(first, None)), "state": state}

    return end


def after_window(arguments: Arguments, first: int) -> Arguments:
    """The last keys and values before, and how many tokens there were."""
    kept = slice(first - arguments["window"] + 1, first)
    return {
        **part(arguments, ("q", "k", "v"), slice(first, None)),
        "past_k": arguments["k"][:, kept],
        "past_v": arguments["v"][:, kept],
        "position": arguments["position"] + first,
    }


def after_keys(arguments: Arguments, first: int) -> Arguments:
    """All keys and values, of which those before are in use."""
    return {
        **part(arguments, ("q", "k", "v"), slice(first, None)),
        "past_k": arguments["k"],
        "past_v": arguments["v"],
        "position": arguments["position"] + first,
    }


def last_entries(arguments: Arguments, first: int) -> Arguments:
    """The entries of the cache that weigh anything, and the same new tokens."""
    return {
        **part(arguments, ("past_k", "past_v"), slice(first, None)),
        "position": arguments["position"] - first,
    }


CASES = (
    # x and y: 8 GiB.
    Case(
        name="rms_norm", op=rms_norm, units=128, arguments=norm_arguments, large="x",
        end=after_nothing,
    ),
    # x, y and the norm: 12 GiB.
    Case(
        name="add_norm", op=add_norm, units=128, arguments=sum_arguments, large="x",
        end=after_nothing_summed, state_row="add_norm",
    ),
    # gate, x and y: 12 GiB.
    Case(
        name="swiglu", op=swiglu, units=128, arguments=gate_arguments, large="x",
        end=after_nothing_gated,
    ),
    # q and what is made of it: 8 GiB.
    Case(
        name="rope", op=rope, units=128, arguments=rope_arguments, large="q",
        end=after_positions, state_row="rope",
    ),
    # x and y: 8 GiB.
    Case(
        name="causal_conv", op=causal_conv, units=128, arguments=conv_arguments, large="x",
        end=after_inputs, state_row="causal_conv",
    ),
    # x, dt, z and y: 16 GiB; B and C in float32: 0.1 GiB. The reading of the tokens before comes
    # after: its y, and the first one: 20 GiB. So many channels are walked.
    Case(
        name="selective_scan", op=selective_scan, units=128, arguments=scan_arguments, large="x",
        end=after_reading(selective_scan, "x", "dt", "B", "C", "z"), state_row="selective_scan",
    ),
    # The same; the states of 64 chunks are a few MiB. Too few channels to walk on a large device.
    Case(
        name="selective_scan, three passes", op=selective_scan, units=32, arguments=scan_arguments,
        large="x", end=after_reading(selective_scan, "x", "dt", "B", "C", "z"),
        state_row="selective_scan",
    ),
    # x and y twice: 12 GiB; B and C, and C before it is scaled: 0.4 GiB; scratch of a slice.
    Case(
        name="ssd", op=ssd, units=64, arguments=ssd_arguments, large="x",
        end=after_reading(ssd, "x", "dt", "B", "C"), state_row="ssd state of bfloat16",
    ),
    # s, u, r and y: 16 GiB; a, and as it is drawn: 8 GiB. The tokens before: another y.
    Case(
        name="conba", op=conba, units=512, arguments=conba_arguments, large="s",
        end=after_reading(conba, "s", "a", "u", "r"), state_row="conba", end_tokens=32,
    ),
    # s and u: 8 GiB; r as it is drawn, and a: 12 GiB; the states of all tokens in float32, the
    # product with C, D u and their sum: 32 GiB; y: 4 GiB.
    Case(
        name="conba, no gain", op=conba, units=512, arguments=conba_arguments_without_gain,
        large="s", end=after_reading(conba, "s", "a", "u"), state_row="conba", end_tokens=32,
    ),
    # x, the experts' parts and y: 12 GiB.
    Case(
        name="moe", op=moe, units=16, arguments=moe_arguments, large="x",
        end=after_nothing_routed,
    ),
    # q, k, v and y, as many key heads as query heads: 16 GiB.
    Case(
        name="window_attention", op=window_attention, units=32, arguments=window_arguments,
        large="q", end=after_window, state_row="window_attention",
    ),
    # q and y: 8 GiB; the reference's scores in float64, 16 queries of 512 heads over 32,776 keys,
    # and what it makes of them: three times 2 GiB.
    Case(
        name="full_attention, a long text", op=full_attention, units=512,
        arguments=full_arguments, large="q", end=after_keys, state_row="full_attention",
        end_tokens=16,
    ),
    # Keys and values of the cache, and their copies: 16 GiB.
    Case(
        name="full_attention, a long cache", op=full_attention, units=32,
        arguments=cache_arguments, large="past_k", end=last_entries, state_row="full_attention",
        end_tokens=16,
    ),
)  # fmt: skip
